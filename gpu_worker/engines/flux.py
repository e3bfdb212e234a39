"""FLUX through `diffusers.FluxPipeline`, from a prepared folder.

Call `prepare_environment()` before importing this module: it imports torch, transformers and diffusers.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
from diffusers import FluxPipeline

from gpu_worker.engines.device_errors import is_out_of_memory, is_poisoned
from gpu_worker.engines.devices import (
    answers,
    choose_device,
    device_memory,
    device_title,
    free_memory,
    plain_type,
)
from gpu_worker.engines.engine import (
    Drawing,
    EngineBroken,
    EngineJob,
    JobCancelled,
    JobProgress,
    LoadProgress,
    NonFiniteImage,
    NotEnoughFreeMemory,
    OutOfDeviceMemory,
    RgbImage,
)
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.footprint import read_footprint
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.model_card import NO_MANIFEST, library_versions, model_name, quantization_title
from gpu_worker.engines.text_encoding import TextEncoding
from gpu_worker.manifest import Manifest, read_manifest
from gpu_worker.memory_plan import MemoryPlan, PlanChoice, choose_plan, gigabytes
from gpu_worker.model_store import check_flux_folder
from proto.messages import ImageParameters, JobPhase, ModelCard

_SMALL_SIDE: Final = 64
_LARGEST_SIDE: Final = 1024
"""Of the contract."""
_TILE_SIDE: Final = 512
"""diffusers' own tiles for this VAE are as large as the largest picture: they would save nothing."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    pipeline: FluxPipeline
    device: torch.device
    text: TextEncoding
    plan_title: str


class FluxEngine:
    """Draws with the model in `folder`; the same seed gives the same bytes on the same device and threads."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str,
        device_asked_for: str = "",
        threads: int | None = None,
        memory_plan: MemoryPlan | None = None,
        prompt_cache_bytes_max: int = 0,
        engine: str = "flux",
        warning: str | None = None,
    ) -> None:
        """`device` is auto, cpu, cuda or cuda:N in this process, `device_asked_for` the operator's word.

        `threads` are the CPU's, None leaves their number; `memory_plan` None chooses one.
        `engine` is what the model card calls it, `warning` takes the place of the usual ones there.
        """
        self._folder = folder
        self._wanted_device = device
        self._device_asked_for = device_asked_for
        self._threads = threads
        self._wanted_plan = memory_plan
        self._prompt_cache_bytes_max = prompt_cache_bytes_max
        self._engine = engine
        self._warning = warning
        self._loaded: _Loaded | None = None

    def load(self, on_progress: LoadProgress) -> ModelCard:
        device = choose_device(self._wanted_device, self._device_asked_for)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        check_flux_folder(self._folder)
        manifest = read_manifest(self._folder)
        with _full_is_temporary(f"device {self._device_asked_for or self._wanted_device}"):
            title = device_title(device, self._device_asked_for)
            memory = device_memory(device, title)
        choice = choose_plan(self._wanted_plan, read_footprint(self._folder), memory)
        plan_title = choice.title(memory)
        log.info("memory plan", plan=plan_title, free=gigabytes(memory.free_bytes), device=title)
        self._loaded = self._carry_out(choice, plan_title, device, on_progress)
        return ModelCard(
            engine=self._engine,
            name=model_name(self._folder, manifest),
            precision="bf16" if plain_type(device) is torch.bfloat16 else "fp32",
            device=title,
            warning=_usual_warning(device, manifest) if self._warning is None else self._warning,
            revision="" if manifest is None else manifest.revision,
            quantization="" if manifest is None else quantization_title(manifest.quantization),
            memory_plan=plan_title,
            versions=library_versions(),
        )

    def _carry_out(
        self, choice: PlanChoice, plan_title: str, device: torch.device, on_progress: LoadProgress
    ) -> _Loaded:
        with _full_is_temporary(f"memory plan {plan_title}"):
            pipeline = load_pipeline(self._folder, load_plan(choice.plan, device), on_progress)
            text = TextEncoding(
                pipeline,
                device=device,
                offload_to=device if choice.plan is MemoryPlan.T5_OFFLOADED else None,
                cache_bytes_max=self._prompt_cache_bytes_max,
            )
        if choice.tiled:
            _tile(pipeline.vae)
        return _Loaded(pipeline=pipeline, device=device, text=text, plan_title=plan_title)

    def warm_up(self) -> None:
        """On a GPU in the largest size: a plan that does not fit must show before the first job."""
        loaded = self._require_loaded()
        side = _LARGEST_SIDE if loaded.device.type == "cuda" else _SMALL_SIDE
        parameters = ImageParameters(height=side, width=side, steps=1, guidance=3.5, seed=0)
        job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt="warm-up", parameters=parameters)
        try:
            self.generate(job, lambda _phase, _step: None)
        except OutOfDeviceMemory as error:
            # Not for others to mend: the plan expected less than it takes. What torch says is logged already.
            raise OutOfDeviceMemory(
                f"memory plan {loaded.plan_title}: out of memory in a first image of {side} x {side}"
            ) from error
        if loaded.device.type == "cuda":
            peak_bytes = torch.cuda.max_memory_reserved(loaded.device)
            log.info("first image", plan=loaded.plan_title, allocator_peak=gigabytes(peak_bytes))

    def generate(self, job: EngineJob, on_progress: JobProgress) -> Drawing:
        """As `Engine.generate`; other errors concern this job only. Where memory runs out it tries twice."""
        try:
            return self._try(job, on_progress)
        except OutOfDeviceMemory as error:
            log.warning(
                "out of memory; what could be freed is free, and the job is drawn once more",
                job_id=job.job_id.hex(),
                error=str(error),
            )
        return self._try(job, on_progress)

    def _try(self, job: EngineJob, on_progress: JobProgress) -> Drawing:
        loaded = self._require_loaded()
        try:
            with torch.inference_mode():
                return _draw(loaded, job, on_progress)
        except (JobCancelled, NonFiniteImage):
            raise
        except Exception as error:
            failure = _translate(error, loaded.device)
            if failure is None:
                raise
            log.warning("drawing failed", job_id=job.job_id.hex(), error=first_line(error))
        finally:
            # Also what a cancelled loop leaves behind in the pipeline's caches.
            loaded.pipeline.maybe_free_model_hooks()
        # Only here is the traceback gone that kept the failed job's tensors alive.
        if isinstance(failure, OutOfDeviceMemory):
            free_memory(loaded.device)
        raise failure

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise RuntimeError("generate() before load()")
        return self._loaded


def _usual_warning(device: torch.device, manifest: Manifest | None) -> str:
    slow = "" if device.type == "cuda" else "runs on the CPU: expect minutes for a picture"
    return "; ".join(filter(None, (slow, NO_MANIFEST if manifest is None else "")))


@contextmanager
def _full_is_temporary(what: str) -> Iterator[None]:
    """Memory that runs out while loading may be there later."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.warning("out of memory while loading", error=first_line(error))
        raise NotEnoughFreeMemory(f"{what}: out of memory while loading") from error


def load_plan(plan: MemoryPlan, device: torch.device) -> LoadPlan:
    """What the memory plan means for the loading."""
    return LoadPlan(
        device=device,
        t5_device=device if plan.keeps_t5 else torch.device("cpu"),
        dtype=plain_type(device),
        # Most CPUs take several times as long for a product in bf16.
        t5_dtype=plain_type(torch.device("cpu") if plan is MemoryPlan.T5_ON_CPU else device),
        expand=plan is MemoryPlan.EXPANDED,
    )


def _tile(vae: Any) -> None:
    vae.enable_tiling()
    vae.tile_sample_min_size = _TILE_SIDE
    vae.tile_latent_min_size = _TILE_SIDE // 2 ** (len(vae.config.block_out_channels) - 1)


def _draw(loaded: _Loaded, job: EngineJob, on_progress: JobProgress) -> Drawing:
    pipeline, wanted = loaded.pipeline, job.parameters
    height, width = (
        _rounded_up(size, pipeline.vae_scale_factor * 2) for size in (wanted.height, wanted.width)
    )
    on_progress(JobPhase.TEXT, 0)
    text, text_cached = loaded.text.encode(job.prompt)
    on_progress(JobPhase.STEP, 0)
    latents = pipeline(
        prompt_embeds=text.prompt_embeds,
        pooled_prompt_embeds=text.pooled_prompt_embeds,
        height=height,
        width=width,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance,
        # The CPU's generator gives the same noise for a seed on every device.
        generator=torch.Generator("cpu").manual_seed(wanted.seed),
        output_type="latent",
        callback_on_step_end=_step_callback(on_progress),
    ).images
    _require_finite(latents, "latents")
    on_progress(JobPhase.DECODE, wanted.steps)
    image = _cropped(_decode(pipeline, latents, height, width), wanted)
    return Drawing(image, text_cached=text_cached)


def _step_callback(on_progress: JobProgress) -> Callable[..., dict[str, Any]]:
    def on_step_end(
        _pipeline: FluxPipeline, index: int, _timestep: object, _tensors: object
    ) -> dict[str, Any]:
        on_progress(JobPhase.STEP, index + 1)
        return {}

    return on_step_end


def _decode(pipeline: FluxPipeline, latents: torch.Tensor, height: int, width: int) -> RgbImage:
    """Shape (height, width, 3)."""
    unpacked = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    scaled = unpacked / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    image = pipeline.vae.decode(scaled.to(pipeline.vae.dtype), return_dict=False)[0]
    # Before it is clamped to a range, which would turn an infinity into plain white.
    _require_finite(image, "decoded image")
    pixels = pipeline.image_processor.postprocess(image, output_type="np")[0]
    return np.asarray((pixels * 255).round(), dtype=np.uint8)


def _require_finite(tensor: torch.Tensor, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteImage(f"the {name} hold NaN or infinity")


def _rounded_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _cropped(image: RgbImage, wanted: ImageParameters) -> RgbImage:
    """The middle of the image, in the size asked for."""
    top, left = (image.shape[0] - wanted.height) // 2, (image.shape[1] - wanted.width) // 2
    return np.ascontiguousarray(image[top : top + wanted.height, left : left + wanted.width])


def _translate(error: Exception, device: torch.device) -> Exception | None:
    """The error in the engine's own words; None if it concerns neither memory nor the device."""
    if is_out_of_memory(error):
        return OutOfDeviceMemory(first_line(error))
    if is_poisoned(error) or not answers(device):
        return EngineBroken(first_line(error))
    return None
