"""The workers as the broker knows them: what they last reported, and what was sent to them since."""

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from broker.jobs import Key, key_of
from proto.messages import HeldOutcome, JobClaim, Outcome, RunningExecution, WorkerPhase, WorkerReport

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


def born_at(report: WorkerReport, heard_at: float) -> float:
    """When the process of this report began, if it was not under way for long."""
    return heard_at - report.age_ms / 1000


@dataclass(slots=True, kw_only=True)
class Worker:
    """One registered incarnation."""

    report: WorkerReport
    """The latest one."""
    route: bytes
    heard_at: float
    seq: int
    slot: Slot
    held: dict[bytes, HeldOutcome] = field(init=False)
    """By execution: what the report lists."""
    images: dict[Key, list[HeldOutcome]] = field(init=False)
    """The images among them that have an idempotency key, by that."""
    by_job: dict[bytes, list[HeldOutcome]] = field(init=False)
    renewed_after: int = -1
    """The `seq` of the report after which its running claim was renewed."""
    unreachable_since: float | None = None
    """When a message to it could not be routed; None once it was heard again."""
    unwanted_since: dict[bytes, float] = field(default_factory=dict)
    """By execution that its report lists: since when no other broker has wanted it."""
    born_at: float = field(init=False)
    """When its process began, at the latest: a report that was under way for long makes it look younger."""

    def __post_init__(self) -> None:
        self.born_at = born_at(self.report, self.heard_at)
        self._read(self.report)

    def take(self, report: WorkerReport, route: bytes, now: float) -> None:
        """Its latest word."""
        self.report, self.route, self.seq = report, route, report.seq
        self.heard_at, self.unreachable_since = now, None
        self.born_at = min(self.born_at, born_at(report, now))
        self._read(report)

    def _read(self, report: WorkerReport) -> None:
        self._hold(report.held)
        running = () if report.running is None else (report.running,)
        listed: tuple[RunningExecution | HeldOutcome, ...] = (*running, *report.held)
        self.unwanted_since = {
            each.execution_id: self.unwanted_since.get(each.execution_id, self.heard_at)
            for each in listed
            if not each.wanted_elsewhere
        }

    def pardon(self, absence_s: float, now: float) -> None:
        """The broker stood still for so long, and could want nothing."""
        self.unwanted_since = {
            execution_id: min(since + absence_s, now) for execution_id, since in self.unwanted_since.items()
        }

    def _hold(self, outcomes: Iterable[HeldOutcome]) -> None:
        self.held = {outcome.execution_id: outcome for outcome in outcomes}
        self.images, self.by_job = {}, {}
        for outcome in self.held.values():
            self._index(outcome)

    def _index(self, outcome: HeldOutcome) -> None:
        self.by_job.setdefault(outcome.claim.job_id, []).append(outcome)
        key = key_of(outcome.claim)
        if key is not None and outcome.failure is None:
            self.images.setdefault(key, []).append(outcome)

    def learn(self, outcome: HeldOutcome) -> None:
        """It has just sent this image: it holds it, though no report has said so yet."""
        if outcome.execution_id not in self.held:
            self.held[outcome.execution_id] = outcome
            self._index(outcome)

    def settle(self, outcome: Outcome) -> None:
        """What it listed while it made a PNG of it has become one, or a failure."""
        listed = self.held.get(outcome.execution_id)
        if listed is None or not listed.is_unfinished:
            return
        failure = None if outcome.failure is None else outcome.failure.code
        ended = dataclasses.replace(listed, failure=failure, size_bytes=len(outcome.body))
        self._hold({**self.held, outcome.execution_id: ended}.values())

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

    def is_loading(self, now: float, probe_after_s: float) -> bool:
        """It can be heard, and is about to be ready: its engine was just started, or died a moment ago."""
        is_about_to = self.report.phase is WorkerPhase.LOADING or isinstance(self.slot, Unclear)
        return is_about_to and self.unreachable_since is None and now - self.heard_at < probe_after_s

    def held_for(self, claim: JobClaim) -> list[HeldOutcome]:
        """What it holds for this job, and the images that it holds for this idempotency key."""
        key = key_of(claim)
        return self.by_job.get(claim.job_id, []) + ([] if key is None else self.images.get(key, []))

    def has(self, execution_id: bytes | None) -> bool:
        """Whether it runs or holds this execution."""
        running = self.running
        runs_it = running is not None and running.execution_id == execution_id
        return execution_id is not None and (runs_it or self.holds(execution_id))

    def holds(self, execution_id: bytes) -> bool:
        return execution_id in self.held

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
