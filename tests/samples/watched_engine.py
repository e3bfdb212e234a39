"""An engine process, started for a test, and all that was heard of it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engine_process import EngineProcess
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import (
    EngineEvent,
    EngineExited,
    EngineFailed,
    EngineFinished,
    EngineLoading,
    EngineProgress,
)
from gpu_worker.model_store import EngineChoice, Fake

LIMIT_S = 30.0
"""For what must happen, however slow this machine is."""
CHILD = 5
E = TypeVar("E")


def fake(step_s: float = 0.0, load_s: float = 0.0) -> Fake:
    return Fake(step_s=step_s, load_s=load_s, faults=True)


class Watched:
    """An engine process and all that was heard of it."""

    def __init__(self, choice: EngineChoice) -> None:
        self.events: list[EngineEvent] = []
        self._heard = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()
        self.process = EngineProcess(CHILD, choice, EngineOptions(), self._hear)

    def _hear(self, event: EngineEvent) -> None:
        assert asyncio.get_running_loop() is not None
        self.events.append(event)
        notice = asyncio.create_task(self._notify())
        self._notices.add(notice)
        notice.add_done_callback(self._notices.discard)

    async def _notify(self) -> None:
        async with self._heard:
            self._heard.notify_all()

    async def until(self, kind: type[E], fits: Callable[[E], bool] = lambda _event: True) -> E:
        """The first such event; it may have come already."""

        def found() -> E | None:
            return next((event for event in self.events if isinstance(event, kind) and fits(event)), None)

        async with asyncio.timeout(LIMIT_S), self._heard:
            await self._heard.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    async def until_made(self) -> int:
        """The pid of the process."""
        await self.until(EngineLoading, lambda _event: self.process.pid is not None)
        assert self.process.pid is not None
        return self.process.pid

    async def until_step(self, job: EngineJob, step: int) -> EngineProgress:
        return await self.until(
            EngineProgress, lambda event: event.execution_id == job.execution_id and event.step >= step
        )

    async def until_finished(self, job: EngineJob) -> EngineFinished:
        return await self.until(EngineFinished, lambda event: event.execution_id == job.execution_id)

    async def until_failed(self, job: EngineJob) -> EngineFailed:
        return await self.until(EngineFailed, lambda event: event.execution_id == job.execution_id)

    def of(self, job: EngineJob) -> list[EngineEvent]:
        return [event for event in self.events if getattr(event, "execution_id", None) == job.execution_id]


@asynccontextmanager
async def started(choice: EngineChoice) -> AsyncIterator[Watched]:
    """A process that was told to start; afterwards it is gone, whatever happened."""
    watched = Watched(choice)
    watched.process.start()
    try:
        yield watched
    finally:
        watched.process.kill()
        async with asyncio.timeout(LIMIT_S):
            await watched.process.wait_gone()
    exits = [event for event in watched.events if isinstance(event, EngineExited)]
    assert watched.events[-1:] == exits, "one exit, and nothing after it"
