"""The workers as the broker knows them: what they last reported, and what was sent to them since."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from proto.messages import RunningExecution, WorkerPhase, WorkerReport

MAX_WORKERS: Final = 1000
"""Registered at once: with all their readings they fit into one snapshot."""
MAX_LOST: Final = 1000
"""Lost workers that are shown, the latest ones."""
MAX_FENCED: Final = 1024
"""Superseded incarnations that are remembered, the latest ones."""


@dataclass(frozen=True, slots=True)
class Idle:
    """It runs nothing and nothing was sent to it."""

    since: float


@dataclass(frozen=True, slots=True)
class Offered:
    """A START is on its way; no report has confirmed it yet."""

    job_id: bytes
    execution_id: bytes
    sent_at: float


@dataclass(frozen=True, slots=True)
class Running:
    """Its last report names this execution; whether it is wanted is the job table's business."""

    job_id: bytes
    execution_id: bytes


@dataclass(frozen=True, slots=True)
class Unclear:
    """It refused a START, or its engine is gone; its next report will tell more."""


Slot = Idle | Offered | Running | Unclear


@dataclass(slots=True, kw_only=True)
class Worker:
    """One registered incarnation."""

    report: WorkerReport
    """The latest one."""
    route: bytes
    heard_at: float
    seq: int
    slot: Slot
    unreachable_since: float | None = None
    """When a message to it could not be routed; None once it was heard again."""

    @property
    def worker_id(self) -> str:
        return self.report.worker_id

    @property
    def incarnation(self) -> bytes:
        return self.report.incarnation

    @property
    def running(self) -> RunningExecution | None:
        """What it runs, as far as is known: what its last report says, unless the outcome has come since."""
        running = self.report.running
        is_in_slot = (
            running is not None
            and isinstance(self.slot, Running)
            and self.slot.execution_id == running.execution_id
        )
        return running if is_in_slot else None

    def is_serving(self, now: float, probe_after_s: float) -> bool:
        """Its model is loaded, it takes jobs, and it can be heard."""
        return (
            self.report.phase is WorkerPhase.READY
            and not isinstance(self.slot, Unclear)
            and self.unreachable_since is None
            and now - self.heard_at < probe_after_s
        )

    def holds(self, execution_id: bytes) -> bool:
        return any(outcome.execution_id == execution_id for outcome in self.report.held)

    def state_name(self) -> str:
        """For people: a `WorkerPhase`, or `busy`."""
        if self.report.phase is not WorkerPhase.READY:
            return self.report.phase.value
        match self.slot:
            case Idle():
                return WorkerPhase.READY.value
            case Offered() | Running():
                return "busy"
            case Unclear():
                return WorkerPhase.LOADING.value
            case _:
                assert_never(self.slot)


@dataclass(frozen=True, slots=True)
class LostWorker:
    """Kept for a while so that operators see what is missing."""

    report: WorkerReport
    heard_at: float
    lost_at: float


@dataclass(slots=True)
class WorkerTable:
    """By `worker_id`: the registered, and the lost. A worker is in one of the two."""

    registered: dict[str, Worker] = field(default_factory=dict)
    lost: dict[str, LostWorker] = field(default_factory=dict)
    fenced: dict[bytes, None] = field(default_factory=dict)
    """Incarnations that were superseded or have left, oldest first."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.registered.values())

    def __len__(self) -> int:
        return len(self.registered)

    def of_incarnation(self, worker_id: str, incarnation: bytes) -> Worker | None:
        worker = self.registered.get(worker_id)
        return worker if worker is not None and worker.incarnation == incarnation else None

    def by_incarnation(self, incarnation: bytes) -> Worker | None:
        return next((worker for worker in self if worker.incarnation == incarnation), None)

    def by_route(self, route: bytes) -> Worker | None:
        return next((worker for worker in self if worker.route == route), None)

    def add(self, worker: Worker) -> None:
        self.lost.pop(worker.worker_id, None)
        self.registered[worker.worker_id] = worker

    def lose(self, worker: Worker, now: float) -> None:
        del self.registered[worker.worker_id]
        self.lost[worker.worker_id] = LostWorker(worker.report, worker.heard_at, now)
        while len(self.lost) > MAX_LOST:
            del self.lost[next(iter(self.lost))]

    def remove(self, worker: Worker) -> None:
        del self.registered[worker.worker_id]

    def fence(self, incarnation: bytes) -> None:
        self.fenced[incarnation] = None
        while len(self.fenced) > MAX_FENCED:
            del self.fenced[next(iter(self.fenced))]

    def forget_lost(self, before: float) -> None:
        self.lost = {key: lost for key, lost in self.lost.items() if lost.lost_at >= before}
