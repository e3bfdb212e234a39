"""What crosses the pipe between a worker and its engine process, beside the events themselves.

The pipe joins two processes of one program, so Python's own serialization is right for it. A PNG follows its
message as it is: pickled, it would be copied four times.
"""

import dataclasses
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    EngineDrawn,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
    EngineReady,
)
from gpu_worker.memory_plan import MemoryPlan
from proto.configuration import LogFormat, LogLevel
from proto.failures import FailureCode


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How an engine process runs, whatever its engine is."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N, among the GPUs that the process may see."""
    device_asked_for: str = ""
    """The operator's own word for it; empty: the same."""
    threads: int | None = None
    """Of the CPU's arithmetic; None leaves it to the engine."""
    cuda_visible_devices: str | None = None
    """The GPUs that the process may see; None leaves the environment as it is."""
    memory_plan: MemoryPlan | None = None
    """None: the fastest that fits."""
    prompt_cache_bytes_max: int = 0
    """For the embeddings of prompts, in main memory."""
    worker_id: str = ""
    """For the receipt of each image."""
    receipt_prompt: bool = True
    """Whether the prompt is in it."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCommand:
    job: EngineJob


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelCommand:
    """Stop this execution, whether it runs or waits. Nothing happens if it is over or unknown."""

    execution_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LastWords:
    """Why the engine process ends by itself."""

    reason: str
    hopeless: bool = False
    temporary: bool = False
    code: FailureCode | None = None
    """These as in `EngineExited`."""


Command = RunCommand | CancelCommand
EngineMessage = (
    EngineLoading | EngineReady | EngineProgress | EngineDrawn | EngineFinished | EngineFailed | LastWords
)


@dataclass(frozen=True, slots=True)
class _PngFollows:
    finished: EngineFinished
    """Without it."""
    size_bytes: int


def send_message(pipe: "Connection[Any, Command]", message: EngineMessage) -> None:
    """From one thread at a time. Raises `OSError`: the worker is gone."""
    if not isinstance(message, EngineFinished):
        pipe.send(message)
        return
    pipe.send(_PngFollows(dataclasses.replace(message, png=b""), len(message.png)))
    rest = memoryview(message.png)
    while rest:
        rest = rest[os.write(pipe.fileno(), rest) :]


def receive_message(pipe: "Connection[Command, Any]") -> EngineMessage:
    """Raises `EOFError` or `OSError` at the end, and anything at all if the other side wrote nonsense."""
    message: EngineMessage | _PngFollows = pipe.recv()
    if not isinstance(message, _PngFollows):
        return message
    png = memoryview(bytearray(message.size_bytes))
    received_bytes = 0
    while received_bytes < message.size_bytes:
        count = os.readv(pipe.fileno(), [png[received_bytes:]])
        if count == 0:
            raise EOFError
        received_bytes += count
    return dataclasses.replace(message.finished, png=png.toreadonly())
