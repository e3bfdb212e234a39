"""How long the device waits between two jobs of one engine process."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engine_process import EngineProcess
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    EngineDrawn,
    EngineEvent,
    EngineExited,
    EngineFinished,
    EngineProgress,
    EngineReady,
)
from gpu_worker.model_store import FluxFolder
from proto.messages import ImageParameters, JobPhase, ModelCard

_LIMIT_S: Final = 900.0


@dataclass(slots=True)
class Pauses:
    gaps_s: list[float] = field(default_factory=list)
    """From the end of one drawing to the beginning of the next."""
    model: ModelCard | None = None
    """That drew."""
    png_delays_s: list[float] = field(default_factory=list)
    """From the end of a drawing to its PNG."""


def measure_pause(folder: Path, device: str, *, side: int, steps: int, jobs: int) -> Pauses:
    """The next job is handed over as soon as one is drawn, as a worker does at best."""
    return asyncio.run(_measure(folder, device, side, steps, jobs))


async def _measure(folder: Path, device: str, side: int, steps: int, jobs: int) -> Pauses:
    heard: asyncio.Queue[tuple[float, EngineEvent]] = asyncio.Queue()
    process = EngineProcess(
        1,
        FluxFolder(path=folder),
        EngineOptions(device=device),
        lambda event: heard.put_nowait((time.perf_counter(), event)),
    )
    process.start()
    try:
        async with asyncio.timeout(_LIMIT_S):
            return await _follow(process, heard, side, steps, jobs)
    finally:
        process.kill()
        await process.wait_gone()


async def _follow(
    process: EngineProcess,
    heard: "asyncio.Queue[tuple[float, EngineEvent]]",
    side: int,
    steps: int,
    jobs: int,
) -> Pauses:
    pauses, drawn_at, begun = Pauses(), dict[bytes, float](), 0
    while len(pauses.png_delays_s) < jobs:
        now, event = await heard.get()
        match event:
            case EngineReady(model=model):
                pauses.model = model
                process.run(_job(begun := begun + 1, side, steps))
            case EngineDrawn(execution_id=execution_id):
                drawn_at[execution_id] = now
                if begun < jobs:
                    process.run(_job(begun := begun + 1, side, steps))
            case EngineProgress(execution_id=execution_id, phase=JobPhase.TEXT) if drawn_at:
                pauses.gaps_s.append(now - max(drawn_at.values()))
            case EngineFinished(execution_id=execution_id):
                pauses.png_delays_s.append(now - drawn_at[execution_id])
            case EngineExited(reason=reason):
                raise RuntimeError(f"the engine process ended: {reason}")
            case _:
                pass
    return pauses


def _job(number: int, side: int, steps: int) -> EngineJob:
    parameters = ImageParameters(height=side, width=side, steps=steps, guidance=3.5, seed=number)
    identifier = number.to_bytes(16)
    return EngineJob(
        execution_id=identifier, job_id=identifier, prompt=f"job {number}", parameters=parameters
    )
