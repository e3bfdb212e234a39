"""Measures one memory plan in a process of its own, and prints the figures as one line of JSON.

    python -m gpu.measure FOLDER --plan bf16 --device cuda --sizes 512 1024 --steps 20 --rounds 3

With `--stock` each round also draws with diffusers' own `FluxPipeline` over the same weights, so that both
see the same machine.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import pynvml
import torch

from gpu_worker.engines.devices import device_memory
from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.footprint import read_footprint
from gpu_worker.memory_plan import MemoryPlan, PlanName, choose_plan
from gpu_worker.readings import visible_handles
from proto.messages import ImageParameters, JobPhase

PROMPT: Final = "a lighthouse above a stormy sea at dawn, oil on canvas"
GUIDANCE: Final = 3.5


@dataclass(slots=True, kw_only=True)
class SizeFigures:
    """At one size; seconds are medians over the rounds."""

    side: int
    step_s: float
    text_s: float
    decode_s: float
    whole_s: float
    """A prompt that is new, to pixels in main memory."""
    cached_s: float
    """The same prompt again."""
    stock_s: float | None
    peak_bytes: int
    """Of the allocator, over all rounds."""


@dataclass(slots=True, kw_only=True)
class Figures:
    plan: str
    title: str
    device: str
    load_s: float
    warm_up_s: float
    expected_bytes: int
    """Of the whole process, by its plan."""
    loaded_bytes: int
    """Of the allocator, after loading."""
    context_bytes: int
    """By which the use of the device grew while the process got its context."""
    process_bytes: int
    """By which it grew in all: with the context, the kernels and all that is cached."""
    sizes: list[SizeFigures] = field(default_factory=list)


class Stopwatch:
    """Takes part in a drawing as its progress callback. Waits for the device where a phase begins, and only
    there: at each step it would make the drawing slower.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began_at: dict[JobPhase, float] = {}

    def __call__(self, phase: JobPhase, _step: int) -> None:
        if phase not in self._began_at:
            synchronize(self._device)
            self._began_at[phase] = time.perf_counter()

    def text_s(self) -> float:
        return self._began_at[JobPhase.STEP] - self._began_at[JobPhase.TEXT]

    def step_s(self, steps: int) -> float:
        """Mean."""
        return (self._began_at[JobPhase.DECODE] - self._began_at[JobPhase.STEP]) / steps

    def decode_s(self, ended_at: float) -> float:
        return ended_at - self._began_at[JobPhase.DECODE]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device, read: Callable[..., int]) -> int:
    """0 on a CPU, which keeps no such account."""
    return read(device) if device.type == "cuda" else 0


def used_by_all(device: torch.device) -> int:
    """Of the device's memory, as the driver says, which needs no context; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    pynvml.nvmlInit()
    handles = visible_handles(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return int(pynvml.nvmlDeviceGetMemoryInfo(handles[device.index or 0]).used)


def measure(
    folder: Path,
    plan: MemoryPlan | None,
    device_name: str,
    sides: list[int],
    steps: int,
    rounds: int,
    *,
    stock: bool,
) -> Figures:
    """Plan None is the one that fits."""
    device = torch.device(device_name)
    used_before = used_by_all(device)
    synchronize(device)
    context_bytes = used_by_all(device) - used_before
    choice = choose_plan(plan, read_footprint(folder), device_memory(device, device_name))
    began = time.perf_counter()
    engine = FluxEngine(folder, device=device_name, memory_plan=plan, prompt_cache_bytes_max=1 << 26)
    card = engine.load(lambda _what, _percent: None)
    synchronize(device)
    loaded = time.perf_counter()
    loaded_bytes = allocated(device, torch.cuda.memory_allocated)
    engine.warm_up()
    warm = time.perf_counter()
    figures = Figures(
        plan="auto" if plan is None else plan.value,
        title=card.memory_plan,
        device=card.device,
        load_s=loaded - began,
        warm_up_s=warm - loaded,
        expected_bytes=choice.expected_peak_bytes,
        loaded_bytes=loaded_bytes,
        context_bytes=context_bytes,
        process_bytes=0,
    )
    for side in sides:
        figures.sizes.append(_measure_size(engine, device, side, steps, rounds, stock=stock))
    figures.process_bytes = used_by_all(device) - used_before
    return figures


def _measure_size(
    engine: FluxEngine, device: torch.device, side: int, steps: int, rounds: int, *, stock: bool
) -> SizeFigures:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stock_pipeline = _stock(engine) if stock else None
    taken: dict[str, list[float]] = {
        name: [] for name in ("step", "text", "decode", "whole", "cached", "stock")
    }
    for number in range(rounds + 1):
        prompt = f"{PROMPT}, {side} pixels, number {number}"
        watch = Stopwatch(device)
        began = time.perf_counter()
        engine.generate(_job(prompt, side, steps), watch)
        ended = time.perf_counter()
        engine.generate(_job(prompt, side, steps), lambda _phase, _step: None)
        again = time.perf_counter()
        if number == 0:
            continue  # the first picture of a size chooses its kernels
        taken["whole"].append(ended - began)
        taken["cached"].append(again - ended)
        taken["step"].append(watch.step_s(steps))
        taken["text"].append(watch.text_s())
        taken["decode"].append(watch.decode_s(ended))
        if stock_pipeline is not None:
            began = time.perf_counter()
            _draw_stock(stock_pipeline, f"{prompt}, stock", side, steps)
            taken["stock"].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) if values else None for name, values in taken.items()}
    return SizeFigures(
        side=side,
        **{f"{name}_s": value for name, value in medians.items()},
        peak_bytes=allocated(device, torch.cuda.max_memory_allocated),
    )


def _job(prompt: str, side: int, steps: int) -> EngineJob:
    parameters = ImageParameters(height=side, width=side, steps=steps, guidance=GUIDANCE, seed=1)
    return EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt=prompt, parameters=parameters)


def _stock(engine: FluxEngine) -> Any:
    """diffusers' pipeline as anybody would use it, over the weights that are loaded already."""
    from diffusers import FluxPipeline  # noqa: PLC0415 - after the environment is prepared

    assert engine._loaded is not None
    pipeline = FluxPipeline(**engine._loaded.pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    _draw_stock(pipeline, PROMPT, 64, 1)
    return pipeline


def _draw_stock(pipeline: Any, prompt: str, side: int, steps: int) -> None:
    pipeline(
        prompt,
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        max_sequence_length=min(512, pipeline.tokenizer_2.model_max_length),
        generator=torch.Generator("cpu").manual_seed(1),
        output_type="np",
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu.measure")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", choices=get_args(PlanName), default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stock", action="store_true")
    given = parser.parse_args()
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # As NVML numbers them.
    plan = None if given.plan == "auto" else MemoryPlan(given.plan)
    figures = measure(
        given.folder, plan, given.device, given.sizes, given.steps, given.rounds, stock=given.stock
    )
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
