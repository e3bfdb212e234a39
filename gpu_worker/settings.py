"""A worker's settings."""

import re
import socket
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import SettingsConfigDict

from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.folder_setting import NamedFolder
from gpu_worker.limits import SessionLimits
from gpu_worker.memory_plan import MemoryPlan, PlanName
from gpu_worker.model_store import EngineChoice, EngineName, Fake, choose_engine
from gpu_worker.own_gpu import OwnGpu, own_gpu
from gpu_worker.readings import device_label
from proto.endpoints import BrokerEndpoints
from proto.messages import MAX_IMAGE_BYTES
from proto.network_settings import PeerSettings

_DEVICE: Final = re.compile(r"auto|cpu|cuda(?::[0-9]{1,3})?|(?:GPU|MIG)-[0-9A-Za-z-]{1,36}")
_GPU_NUMBER: Final = re.compile(r"[0-9]{1,3}")
_WORKER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MIB: Final = 1024 * 1024


def _device(value: str) -> str:
    device = f"cuda:{value}" if _GPU_NUMBER.fullmatch(value) else value
    if _DEVICE.fullmatch(device) is None:
        raise ValueError("must be auto, cpu, cuda, cuda:N or N with the number of a GPU, or its UUID")
    return device


def _worker_id(value: str) -> str:
    if value and _WORKER_ID.fullmatch(value) is None:
        raise ValueError("must be 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    return value


class WorkerSettings(PeerSettings):
    """A GPU worker: one engine, one job at a time.

    Two commands prepare its model folder, each with a --help of its own: `python -m gpu_worker prefetch`
    downloads FLUX.1-dev, `python -m gpu_worker quantize` makes 4-bit weights of it.
    """

    model_config = SettingsConfigDict(env_prefix="FLUX_WORKER_", populate_by_name=True)

    broker_endpoints: BrokerEndpoints = Field(
        ("tcp://127.0.0.1:5561",),
        description="where brokers listen for workers, separated by commas",
    )
    worker_id: Annotated[str, AfterValidator(_worker_id)] = Field(
        "",
        description="stable name of this worker, of its own among all workers;"
        " if empty, the host's name with gpuN or cpu: HOST-gpu0",
    )
    engine: EngineName = Field(
        "auto",
        description="flux: the model in the model folder; embedded: a small one that draws shapes, for any"
        " machine; fake: no model, for tests; auto: flux if the folder has one or is set, otherwise embedded",
    )
    model_dir: NamedFolder = Field(
        Path("hub/FLUX.1-dev"), description="folder with a FLUX model in diffusers' layout, for flux and auto"
    )
    device: Annotated[str, AfterValidator(_device)] = Field(
        "auto", description="auto (the first GPU, otherwise the CPU), cpu, cuda, cuda:N or N, or a GPU's UUID"
    )
    cuda_visible_devices: str | None = Field(
        None,
        validation_alias="cuda_visible_devices",
        description="numbers or UUIDs of the GPUs among which --device chooses this worker's; unset: all",
    )
    memory_plan: PlanName = Field(
        "auto",
        description="what lies where while drawing: bf16 for plain weights; 4bit-expanded, 4bit,"
        " 4bit-t5-offload or 4bit-t5-cpu for 4-bit ones; auto: the fastest that fits the device",
    )
    prompt_cache_bytes_max: int = Field(
        64 * _MIB,
        ge=0,
        le=65536 * _MIB,
        description="encoded prompts kept in main memory at most, about 4 MiB each for FLUX; 0: none, bytes",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="threads of the CPU's arithmetic; another number gives other pixels;"
        " 0: one for the embedded model, torch's own choice for flux",
    )

    load_limit_s: float = Field(
        900,
        gt=0,
        le=86400,
        description="an engine process that loads without progress for longer is killed, s",
    )
    text_limit_s: float = Field(60, gt=0, le=3600, description="limit for encoding a prompt, likewise, s")
    step_limit_s: float = Field(60, gt=0, le=3600, description="limit for one denoising step, likewise, s")
    decode_limit_s: float = Field(
        120, gt=0, le=3600, description="limit for decoding an image and making its PNG, likewise, s"
    )
    cancel_limit_s: float = Field(
        30, gt=0, le=3600, description="limit for stopping a cancelled job, likewise, s"
    )
    engine_backoff_s: float = Field(
        1,
        gt=0,
        le=3600,
        description="pause before an engine process that died twice is replaced; doubles each time, s",
    )
    engine_backoff_max_s: float = Field(60, gt=0, le=3600, description="longest such pause, s")
    engine_failures_max: int = Field(
        10,
        ge=1,
        le=1000,
        description="after so many engine processes in a row that never became ready the worker ends",
    )
    quarantine_s: float = Field(
        300,
        ge=0,
        le=86400,
        description="pause of a worker whose engine died on two different jobs without an image in between;"
        " 0: none, s",
    )

    held_bytes_max: int = Field(
        64 * _MIB,
        ge=_MIB,
        le=4096 * _MIB,
        description="outcomes held, delivered or not, at most, bytes",
    )
    held_age_max_s: float = Field(
        120, gt=0, le=3600, description="how long an outcome is held that nobody has delivered, s"
    )
    kept_age_max_s: float = Field(
        600,
        ge=0,
        le=86400,
        description="how long a delivered image is kept for a repeat of its call, while there is room;"
        " 0: not at all, s",
    )

    receipt_prompt: bool = Field(True, description="write the prompt into each PNG, beside how it was made")

    fake_step_s: float = Field(0.05, ge=0, le=3600, description="fake engine: duration of a step, s")
    fake_load_s: float = Field(0.0, ge=0, le=3600, description="fake engine: duration of loading, s")
    fake_faults: bool = Field(
        False,
        description="fake engine: obey prompts such as !crash@3, with crash, hang, oom, error, nonfinite"
        " or poisoned",
    )
    fake_gate: Path | None = Field(
        None, description="fake engine: no job gets beyond its first step while this file exists"
    )
    fake_png_bytes: int = Field(
        0,
        ge=0,
        le=MAX_IMAGE_BYTES,
        description="fake engine: answer at once with a black PNG of this size, to measure what is around it;"
        " 0: paint, bytes",
    )

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.engine_backoff_max_s < self.engine_backoff_s:
            raise ValueError("engine_backoff_max_s must not be less than engine_backoff_s")
        return self

    @model_validator(mode="after")
    def _name_worker(self) -> Self:
        if not self.worker_id:
            host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:80] or "host"
            label = device_label(self.device, self.cuda_visible_devices)
            # The settings are frozen for everybody else.
            object.__setattr__(self, "worker_id", f"{host}-{label}")
        return self

    def engine_choice(self) -> EngineChoice:
        """The engine that is meant. Raises `ModelUnusable`: the model folder cannot be used."""
        engine: EngineName = self.engine
        if engine == "auto" and "model_dir" in self.model_fields_set:
            engine = "flux"  # Whoever names a folder does not want another model without a word.
        fake = Fake(
            step_s=self.fake_step_s,
            load_s=self.fake_load_s,
            faults=self.fake_faults,
            gate=self.fake_gate,
            png_bytes=self.fake_png_bytes,
        )
        return choose_engine(engine, model_dir=self.model_dir, fake=fake)

    @property
    def own_gpu(self) -> OwnGpu:
        """What this worker's engine and readings see: two workers on one host have a GPU each."""
        return own_gpu(self.device, self.cuda_visible_devices)

    @property
    def engine_options(self) -> EngineOptions:
        return EngineOptions(
            device=self.own_gpu.device,
            device_asked_for=self.device,
            threads=self.threads or None,
            cuda_visible_devices=self.own_gpu.visible,
            memory_plan=None if self.memory_plan == "auto" else MemoryPlan(self.memory_plan),
            prompt_cache_bytes_max=self.prompt_cache_bytes_max,
            worker_id=self.worker_id,
            receipt_prompt=self.receipt_prompt,
            log_level=self.log_level,
            log_format=self.log_format,
        )

    @property
    def session_limits(self) -> SessionLimits:
        return SessionLimits(
            load_s=self.load_limit_s,
            text_s=self.text_limit_s,
            step_s=self.step_limit_s,
            decode_s=self.decode_limit_s,
            cancel_s=self.cancel_limit_s,
            backoff_s=self.engine_backoff_s,
            backoff_max_s=self.engine_backoff_max_s,
            engine_failures_max=self.engine_failures_max,
            quarantine_s=self.quarantine_s,
            held_bytes_max=self.held_bytes_max,
            held_age_max_s=self.held_age_max_s,
            kept_age_max_s=self.kept_age_max_s,
        )
