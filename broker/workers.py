"""The workers as the broker knows them: what they last reported, and what was sent to them since."""

import dataclasses
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, assert_never

from broker.groups import Groups
from broker.jobs import Key, Name, key_of, names_of
from proto.latest import keep_latest
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
    names: frozenset[Name] = frozenset()
    """By which it was filed: of all that its report lists."""
    number: int = 0
    """Its place in the order of registration."""
    renewed_after: int = -1
    """The `seq` of the report after which its running claim was renewed."""
    unreachable_since: float | None = None
    """When a message to it could not be routed; None once it was heard again."""
    unwanted_since: dict[bytes, float] = field(default_factory=dict)
    """By execution that its report lists: since when no other broker has wanted it."""
    registered_at: float = field(init=False)
    reported_at: float = field(init=False)
    born_at: float = field(init=False)
    """When its process began, at the latest: a report that was under way for long makes it look younger."""

    def __post_init__(self) -> None:
        self.registered_at = self.reported_at = self.heard_at
        self.born_at = born_at(self.report, self.heard_at)
        self._read(self.report)

    def take(self, report: WorkerReport, route: bytes, now: float) -> None:
        """Its latest word."""
        self.report, self.route, self.seq = report, route, report.seq
        self.heard_at, self.unreachable_since = now, None
        self.reported_at = now
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
        self.heard_at = min(self.heard_at + absence_s, now)
        if self.unreachable_since is not None:
            self.unreachable_since = min(self.unreachable_since + absence_s, now)
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

    def settle(self, outcome: Outcome) -> bool:
        """What it listed while it made a PNG of it has become one, or a failure; False for all else."""
        listed = self.held.get(outcome.execution_id)
        if listed is None or not listed.is_unfinished:
            return False
        failure = None if outcome.failure is None else outcome.failure.code
        ended = dataclasses.replace(listed, failure=failure, size_bytes=len(outcome.body))
        self._hold({**self.held, outcome.execution_id: ended}.values())
        return True

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

    @property
    def reported_for_s(self) -> float:
        """From its first report to its latest."""
        return self.reported_at - self.registered_at

    @property
    def has_engine(self) -> bool:
        """Its model is loaded, as far as is known."""
        return self.report.phase is WorkerPhase.READY and not isinstance(self.slot, Unclear)

    @property
    def takes_jobs(self) -> bool:
        """And it can be reached, as far as is known."""
        return self.has_engine and self.unreachable_since is None

    def all_names(self) -> frozenset[Name]:
        """By which what it runs and holds can be asked for."""
        running = self.report.running
        return frozenset((*self.by_job, *self.images, *(names_of(running.claim) if running else ())))

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
class IdleWorkers:
    """Those that serve and are idle, the longest idle first."""

    _order: list[tuple[float, int, Worker]] = field(default_factory=list)
    _places: dict[str, tuple[float, int, Worker]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Worker]:
        return (worker for _, _, worker in self._order)

    def put(self, worker: Worker, since: float | None) -> None:
        """It has been idle since then; None: it is not."""
        known = self._places.get(worker.worker_id)
        if known is not None:
            if known[0] == since:
                return
            del self._order[bisect_left(self._order, known[:2], key=_place)]
            del self._places[worker.worker_id]
        if since is not None:
            entry = self._places[worker.worker_id] = (since, worker.number, worker)
            insort(self._order, entry, key=_place)

    def longest(self, rather_not: str | None) -> Worker:
        """Who is idle for the longest time, if possible another one than this."""
        _, _, first = self._order[0]
        is_unwelcome = first.worker_id == rather_not and len(self._order) > 1
        return self._order[1][2] if is_unwelcome else first


def _place(entry: tuple[float, int, Worker]) -> tuple[float, int]:
    return entry[:2]


@dataclass(slots=True)
class Fenced:
    """An incarnation that was superseded, or has left."""

    has_left: bool = False
    spoke_at: float | None = None
    """Its first word since the younger one spoke last."""


@dataclass(slots=True)
class WorkerTable:
    """By `worker_id`: the registered, and the lost. A worker is in one of the two.

    It alone changes what decides where a registered worker is found.
    """

    probe_after_s: float
    """One that was not heard for so long does not serve."""
    registered: dict[str, Worker] = field(default_factory=dict)
    lost: dict[str, LostWorker] = field(default_factory=dict)
    fenced: dict[bytes, Fenced] = field(default_factory=dict)
    """By incarnation, oldest first."""
    serving: dict[str, Worker] = field(default_factory=dict)
    """With a loaded model, idle or busy, that can be heard."""
    idle: IdleWorkers = field(default_factory=IdleWorkers)
    running: dict[bytes, Worker] = field(default_factory=dict)
    """By the execution in the slot of those that have reported one."""
    by_name: Groups[Name, str, Worker] = field(default_factory=Groups)
    """By what they run and hold."""
    _heard: OrderedDict[str, Worker] = field(default_factory=OrderedDict)
    """Those that are not silent, the one that was heard last at the end."""
    _registrations: int = 0

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

    def having(self, claim: JobClaim) -> list[Worker]:
        """Those that run or hold something of this job or idempotency key, in the order of registration."""
        found = {
            worker_id: worker
            for name in names_of(claim)
            for worker_id, worker in self.by_name.of(name).items()
        }
        return sorted(found.values(), key=_registration)

    # --- Changes -------------------------------------------------------------------------------

    def add(self, worker: Worker) -> None:
        self._registrations += 1
        worker.number = self._registrations
        self.lost.pop(worker.worker_id, None)
        self.registered[worker.worker_id] = worker

    def take(self, worker: Worker, report: WorkerReport, route: bytes, now: float) -> None:
        """Its latest word."""
        worker.take(report, route, now)
        self._name(worker, worker.all_names())
        self._hear(worker)

    def heard(self, worker: Worker, route: bytes, seq: int, now: float) -> None:
        """It has said something else."""
        worker.route, worker.seq = route, seq
        worker.heard_at, worker.unreachable_since = now, None
        self._hear(worker)

    def set_slot(self, worker: Worker, slot: Slot) -> None:
        self._vacate(worker)
        worker.slot = slot
        if isinstance(slot, Running):
            self.running[slot.execution_id] = worker
        self._file(worker)

    def _vacate(self, worker: Worker) -> None:
        slot = worker.slot
        # Nothing keeps a worker from reporting another's execution as its own.
        if isinstance(slot, Running) and self.running.get(slot.execution_id) is worker:
            del self.running[slot.execution_id]

    def settle(self, worker: Worker, outcome: Outcome) -> None:
        """What it listed while it made a PNG of it has become one, or a failure."""
        if worker.settle(outcome):
            self._name(worker, worker.all_names())

    def learn(self, worker: Worker, outcome: HeldOutcome) -> None:
        """It holds this as well."""
        worker.learn(outcome)
        self._name(worker, worker.all_names())

    def cannot_be_reached(self, worker: Worker, now: float) -> None:
        worker.unreachable_since = now
        self._file(worker)

    def advance(self, now: float) -> None:
        """Time has passed: who has been silent for too long does not serve any more."""
        while self._heard:
            worker = next(iter(self._heard.values()))
            if now - worker.heard_at < self.probe_after_s:
                return
            del self._heard[worker.worker_id]
            self._file(worker)

    def pardon(self, absence_s: float, now: float) -> None:
        """Nobody could be heard for so long."""
        for worker in self:
            worker.pardon(absence_s, now)
        self._heard = OrderedDict(
            (worker.worker_id, worker) for worker in sorted(self, key=lambda worker: worker.heard_at)
        )
        for worker in self:
            self._file(worker)

    def _hear(self, worker: Worker) -> None:
        self._heard[worker.worker_id] = worker
        self._heard.move_to_end(worker.worker_id)
        self._file(worker)

    def _file(self, worker: Worker) -> None:
        """Whether it serves, and is idle."""
        slot, serves = worker.slot, worker.takes_jobs and worker.worker_id in self._heard
        if serves:
            self.serving[worker.worker_id] = worker
        else:
            self.serving.pop(worker.worker_id, None)
        self.idle.put(worker, slot.since if serves and isinstance(slot, Idle) else None)

    def _name(self, worker: Worker, names: frozenset[Name]) -> None:
        for name in worker.names - names:
            self.by_name.remove(name, worker.worker_id)
        for name in names - worker.names:
            self.by_name.add(name, worker.worker_id, worker)
        worker.names = names

    def lose(self, worker: Worker, now: float) -> None:
        self.remove(worker)
        self.lost[worker.worker_id] = LostWorker(worker.report, worker.heard_at, now)
        keep_latest(self.lost, MAX_LOST)

    def remove(self, worker: Worker) -> None:
        del self.registered[worker.worker_id]
        self.serving.pop(worker.worker_id, None)
        self._heard.pop(worker.worker_id, None)
        self.idle.put(worker, None)
        self._name(worker, frozenset())
        self._vacate(worker)

    def fence(self, incarnation: bytes, *, has_left: bool = False) -> Fenced:
        fenced = self.fenced.setdefault(incarnation, Fenced())
        fenced.has_left = fenced.has_left or has_left
        keep_latest(self.fenced, MAX_FENCED)
        return fenced

    def forget_lost(self, before: float) -> None:
        self.lost = {key: lost for key, lost in self.lost.items() if lost.lost_at >= before}


def _registration(worker: Worker) -> int:
    return worker.number
