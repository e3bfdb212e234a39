"""FLUX through `diffusers.FluxPipeline`, from a prepared folder.

Call `prepare_environment()` before importing this module: it imports torch, transformers and diffusers.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import structlog
import torch
from diffusers import FluxPipeline

from gpu_worker.engines.device_errors import is_out_of_memory, is_poisoned
from gpu_worker.engines.engine import (
    EngineBroken,
    EngineJob,
    JobCancelled,
    JobProgress,
    LoadProgress,
    ModelUnusable,
    NonFiniteImage,
    OutOfDeviceMemory,
    RgbImage,
)
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.load_plan import LoadPlan
from proto.messages import ImageParameters, JobPhase, ModelCard

_PROMPT_TOKENS_MAX: Final = 512
"""The pipeline takes no more for its T5 encoder."""
_WARM_UP_SIDE: Final = 64
_NAME_MAX_CHARACTERS: Final = 128

log = structlog.get_logger()


class FluxEngine:
    """Draws with the model in `folder`; the same seed gives the same bytes on the same device and threads."""

    def __init__(
        self, folder: Path, *, device: str, threads: int | None = None, engine: str = "flux"
    ) -> None:
        """`device` is auto, cpu, cuda or cuda:N; `threads` are the CPU's, None leaves their number."""
        self._folder = folder
        self._wanted_device = device
        self._threads = threads
        self._engine = engine
        self._loaded: tuple[FluxPipeline, torch.device] | None = None

    def load(self, on_progress: LoadProgress) -> ModelCard:
        device = choose_device(self._wanted_device)
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        how = LoadPlan(device=device, t5_device=device, dtype=dtype, expand=False)
        self._loaded = load_pipeline(self._folder, how, on_progress), device
        return ModelCard(
            engine=self._engine,
            name=self._folder.name[:_NAME_MAX_CHARACTERS],
            precision="bf16" if dtype is torch.bfloat16 else "fp32",
            device=device_title(device),
            warning=self._warning(device),
        )

    def _warning(self, _device: torch.device) -> str:
        return "" if _device.type == "cuda" else "runs on the CPU: expect minutes for a picture"

    def warm_up(self) -> None:
        size = {"height": _WARM_UP_SIDE, "width": _WARM_UP_SIDE}
        parameters = ImageParameters(**size, steps=1, guidance=3.5, seed=0)
        job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt="warm-up", parameters=parameters)
        self.generate(job, lambda _phase, _step: None)

    def generate(self, job: EngineJob, on_progress: JobProgress) -> RgbImage:
        """As `Engine.generate`; an error that it does not name concerns this job only."""
        pipeline, device = self._require_loaded()
        try:
            with torch.inference_mode():
                return _draw(pipeline, device, job, on_progress)
        except (JobCancelled, NonFiniteImage):
            raise
        except Exception as error:
            failure = _translate(error, device)
            if failure is None:
                raise
            log.warning("drawing failed", job_id=job.job_id.hex(), error=first_line(error))
        finally:
            # Also what a cancelled loop leaves behind in the pipeline's caches.
            pipeline.maybe_free_model_hooks()
        # Only here is the traceback gone that kept the failed job's tensors alive.
        if isinstance(failure, OutOfDeviceMemory):
            _free_memory(device)
        raise failure

    def unload(self) -> None:
        if self._loaded is not None:
            _, device = self._loaded
            self._loaded = None
            _free_memory(device)

    def _require_loaded(self) -> tuple[FluxPipeline, torch.device]:
        if self._loaded is None:
            raise RuntimeError("generate() before load()")
        return self._loaded


def choose_device(wanted: str) -> torch.device:
    """The device that auto, cpu, cuda or cuda:N means here. Raises `ModelUnusable` if there is none such."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    number = int(wanted.partition(":")[2] or 0)
    if number >= gpus:
        built = "" if torch.backends.cuda.is_built() else "; this torch is built without CUDA"
        raise ModelUnusable(f"device {wanted}: torch sees {gpus} GPUs{built}")
    return torch.device("cuda", number)


def device_title(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _draw(pipeline: FluxPipeline, device: torch.device, job: EngineJob, on_progress: JobProgress) -> RgbImage:
    wanted = job.parameters
    height, width = (
        _rounded_up(size, pipeline.vae_scale_factor * 2) for size in (wanted.height, wanted.width)
    )
    on_progress(JobPhase.TEXT, 0)
    prompt_embeds, pooled_prompt_embeds = _encode(pipeline, device, job.prompt)
    on_progress(JobPhase.STEP, 0)
    latents = pipeline(
        prompt_embeds=prompt_embeds,
        pooled_prompt_embeds=pooled_prompt_embeds,
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
    return _cropped(_decode(pipeline, latents, height, width), wanted)


def _encode(pipeline: FluxPipeline, device: torch.device, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    prompt_embeds, pooled_prompt_embeds, _ = pipeline.encode_prompt(
        prompt=prompt,
        prompt_2=None,
        device=device,
        max_sequence_length=min(_PROMPT_TOKENS_MAX, pipeline.tokenizer_2.model_max_length),
    )
    return prompt_embeds, pooled_prompt_embeds


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
    if is_poisoned(error) or not _answers(device):
        return EngineBroken(first_line(error))
    return None


def _answers(device: torch.device) -> bool:
    """Whether the device still works; its errors can come late, under another name."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        log.error("the device does not answer", device=str(device), error=first_line(error))
        return False
    return True


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
