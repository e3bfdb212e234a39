"""What lies where while the engine draws, chosen from the model's size and the device's memory. Pure.

A plan's expected peak is the weights that stay on the device, the working memory of the largest phase (text,
step, decode) at the largest size of the contract, and an allowance for what the libraries take. The working
memory is derived with fake tensors (`tests/benchmarks/working_memory.py`); on an H200 torch's tensors took
that much to 0.2 GB (docs/gpu-host.md). Where there is room, torch keeps 2 to 3 GB of freed memory beyond it.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from gpu_worker.engines.engine import ModelUnusable, NotEnoughFreeMemory
from gpu_worker.model_footprint import ModelFootprint

_MB: Final = 1_000_000
_DERIVED_FOR_BYTES: Final = 2
"""The constants below are for bf16."""

# For FLUX.1-dev at 1024 x 1024 and 512 tokens, all tensors alive at once, from the program named above.
TEXT_BYTES: Final = 96 * _MB
STEP_BYTES: Final = 491 * _MB
DECODE_BYTES: Final = 1611 * _MB
TILED_DECODE_BYTES: Final = 409 * _MB
"""In tiles of 512 x 512."""
LARGEST_IMAGE_BYTES: Final = 1024 * 1024 * 256 * 2
"""The VAE's largest tensor. A library may copy a convolution's input and output to another layout."""
UNPACKING_COPIES: Final = 2
"""Of a 4-bit layer's plain weights, alive at once while it is unpacked; its codes go with them."""
CONTEXT_BYTES: Final = 550 * _MB
"""A process's CUDA context; 549 MB on an H200 with driver 580."""
GPU_ALLOWANCE_BYTES: Final = 400 * _MB
"""Workspaces of cuBLAS and cuDNN, and what the allocator cannot use for being in pieces: a plan that
expected all of a card filled up to 12 GiB drew there, with 0.3 GB left."""
CPU_ALLOWANCE_BYTES: Final = 250 * _MB


class PlanUnusable(ModelUnusable):
    """The device or the folder is not one for the plan; the model itself may be whole."""


class MemoryPlan(StrEnum):
    """From the fastest to the slowest, so far as a folder allows them."""

    BF16 = "bf16"
    """Plain weights, all on the device. For plain folders."""
    EXPANDED = "4bit-expanded"
    """Stored in 4 bits, plain on the device."""
    PACKED = "4bit"
    """All on the device in 4 bits; a layer is unpacked while it computes."""
    T5_OFFLOADED = "4bit-t5-offload"
    """T5 in main memory, brought to the device for each new prompt."""
    T5_ON_CPU = "4bit-t5-cpu"
    """T5 in main memory, and computed by the CPU."""

    @property
    def is_expanded(self) -> bool:
        return self in {MemoryPlan.BF16, MemoryPlan.EXPANDED}

    @property
    def keeps_t5(self) -> bool:
        """On the device, from the loading to the end."""
        return self not in {MemoryPlan.T5_OFFLOADED, MemoryPlan.T5_ON_CPU}


PlanName = Literal["auto", "bf16", "4bit-expanded", "4bit", "4bit-t5-offload", "4bit-t5-cpu"]
"""As operators write it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    device: str
    """For texts."""
    total_bytes: int
    free_bytes: int
    """Now, after this process has its context."""
    number_bytes: int
    """Of a plain weight: 2 for bf16, 4 for fp32."""
    is_gpu: bool

    @property
    def context_bytes(self) -> int:
        return CONTEXT_BYTES if self.is_gpu else 0

    @property
    def taken_bytes(self) -> int:
        """By others."""
        return max(0, self.total_bytes - self.free_bytes - self.context_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanChoice:
    plan: MemoryPlan
    tiled: bool
    """The VAE decodes in tiles: slower, and with faint seams where the whole would not fit."""
    expected_peak_bytes: int
    """Of the whole process, on the device."""

    def title(self, device: DeviceMemory) -> str:
        """One line for operators."""
        weights = "fp32" if self.plan is MemoryPlan.BF16 and device.number_bytes > 2 else self.plan.value
        tiles = ", VAE in tiles" if self.tiled else ""
        return f"{weights}{tiles}, about {gigabytes(self.expected_peak_bytes)} expected"


def choose_plan(wanted: MemoryPlan | None, model: ModelFootprint, memory: DeviceMemory) -> PlanChoice:
    """The wanted plan, or for None the fastest that fits into what is free. Tiles only where it takes them.

    Raises:
        PlanUnusable: the device is too small, or the folder no such one; the text says what would do.
        NotEnoughFreeMemory: the device is large enough, but others use it.
    """
    if wanted is not None:
        _check_folder(wanted, model)
    choices = [choice for choice in plan_choices(model, memory) if wanted is None or choice.plan is wanted]
    for choice in choices:
        if _is_free(choice, memory):
            return choice
    smallest = min(choices, key=lambda choice: choice.expected_peak_bytes)
    need = f"memory plan {smallest.plan} needs about {gigabytes(smallest.expected_peak_bytes)}"
    if smallest.expected_peak_bytes > memory.total_bytes:
        size = f"{memory.device} has {gigabytes(memory.total_bytes)}"
        raise PlanUnusable(f"{need}, but {size}; {_advice(model, memory)}")
    raise NotEnoughFreeMemory(
        f"{need}; of the {gigabytes(memory.total_bytes)} of {memory.device}"
        f" others use {gigabytes(memory.taken_bytes)} now"
    )


def plan_choices(model: ModelFootprint, memory: DeviceMemory) -> list[PlanChoice]:
    """All that such a folder allows, the best first."""
    return [
        PlanChoice(
            plan=plan,
            tiled=tiled,
            expected_peak_bytes=expected_peak_bytes(plan, model, memory, tiled=tiled),
        )
        for plan in MemoryPlan
        if model.is_packed is not (plan is MemoryPlan.BF16)
        for tiled in (False, True)
    ]


def expected_peak_bytes(plan: MemoryPlan, model: ModelFootprint, memory: DeviceMemory, *, tiled: bool) -> int:
    """Of the process on the device, its context included."""
    number_bytes, expanded = memory.number_bytes, plan.is_expanded
    t5 = model.t5.weight_bytes(number_bytes, expanded=expanded)
    others = sum(
        part.weight_bytes(number_bytes, expanded=expanded)
        for part in (model.transformer, model.clip, model.vae)
    )
    text, drawing = _working_bytes(plan, model, number_bytes, tiled=tiled)
    if not memory.is_gpu or plan.keeps_t5:
        peak = others + t5 + max(text, drawing)
    elif plan is MemoryPlan.T5_OFFLOADED:
        peak = others + max(t5 + text, drawing)
    else:
        peak = others + drawing
    return peak + memory.context_bytes + (GPU_ALLOWANCE_BYTES if memory.is_gpu else CPU_ALLOWANCE_BYTES)


def _working_bytes(
    plan: MemoryPlan, model: ModelFootprint, number_bytes: int, *, tiled: bool
) -> tuple[int, int]:
    """Beside the weights: of the text phase, and of the larger one of step and decode."""
    unpacked = 0 if plan.is_expanded else UNPACKING_COPIES * number_bytes
    scale = number_bytes / _DERIVED_FOR_BYTES
    decode = (TILED_DECODE_BYTES if tiled else DECODE_BYTES) + 2 * LARGEST_IMAGE_BYTES // (4 if tiled else 1)
    text = TEXT_BYTES * model.t5.width * scale + unpacked * model.t5.largest_packed
    step = STEP_BYTES * model.transformer.width * scale + unpacked * model.transformer.largest_packed
    return int(text), int(max(step, decode * model.vae.width * scale))


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"


def _is_free(choice: PlanChoice, memory: DeviceMemory) -> bool:
    return choice.expected_peak_bytes - memory.context_bytes <= memory.free_bytes


def _check_folder(wanted: MemoryPlan, model: ModelFootprint) -> None:
    if model.is_packed and wanted is MemoryPlan.BF16:
        raise PlanUnusable(
            f"memory plan {wanted} is for plain weights, and the model folder holds 4-bit ones:"
            f" {MemoryPlan.EXPANDED} makes them plain"
        )
    if not model.is_packed and wanted is not MemoryPlan.BF16:
        raise PlanUnusable(
            f"memory plan {wanted} is for 4-bit weights, and the model folder holds plain ones:"
            " make a 4-bit folder first, with python -m gpu_worker quantize"
        )


def _advice(model: ModelFootprint, memory: DeviceMemory) -> str:
    """Which plan would fit the device if nobody else used it."""
    if (fitting := _first_fitting(model, memory)) is not None:
        return f"memory plan {fitting} would fit"
    if not model.is_packed and (fitting := _first_fitting(model.packed(), memory)) is not None:
        return f"quantize the model first (python -m gpu_worker quantize), then {fitting} would fit"
    return "no memory plan fits"


def _first_fitting(model: ModelFootprint, memory: DeviceMemory) -> MemoryPlan | None:
    choices = plan_choices(model, memory)
    return next((it.plan for it in choices if it.expected_peak_bytes <= memory.total_bytes), None)
