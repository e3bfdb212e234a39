"""All that the broker knows, and the actions that pile up while it handles one event."""

from collections.abc import Callable
from dataclasses import dataclass, field

from broker.actions import Action, SendToFrontend, SendToWorker, TracedJobMoved
from broker.estimates import NextFree, RunTimes
from broker.frontends import Frontend, FrontendTable
from broker.jobs import Job, JobTable, State, is_same_image
from broker.snapshot import Counters
from broker.views import ViewMaker
from broker.wishes import Moment, Wishes, WishMaker
from broker.workers import Worker, WorkerTable
from proto.messages import (
    HeldOutcome,
    JobClaim,
    JobStatus,
    RunningExecution,
    Submit,
    ToFrontend,
    ToWorker,
    TraceContext,
)
from proto.notes import Note, NoteLevel
from proto.timing import Timing


@dataclass(frozen=True, slots=True)
class PendingSubmit:
    submit: Submit
    arrived_at: float


@dataclass(slots=True, kw_only=True)
class BrokerState:
    broker_id: str
    epoch: bytes
    """This life of the broker."""
    new_execution_id: Callable[[], bytes]
    timing: Timing
    queue_limit: int
    """New jobs that may wait for a worker to become idle."""
    is_first: bool = False
    """No broker of this service has run before."""

    workers: WorkerTable = field(init=False)
    jobs: JobTable = field(init=False)
    frontends: FrontendTable = field(default_factory=FrontendTable)
    run_times: RunTimes = field(default_factory=RunTimes)
    next_free: NextFree = field(init=False)
    counters: Counters = field(default_factory=Counters)
    pending: dict[bytes, PendingSubmit] = field(default_factory=dict)
    """By `job_id`: new jobs that came in the rebuild window, in the order of their arrival."""
    is_rebuilt: bool = field(init=False)
    """The rebuild window is over, and those were judged."""
    draining: bool = False
    now: float = 0.0
    """Of the event that is handled."""
    heard_until: float | None = None
    """What has come since then has not all been told yet; None: what has come was."""
    silence_at: float = 0.0
    """The latest instant at which it is known who was silent. It never goes back."""
    started_at: float | None = None
    """Of the first event."""
    views: ViewMaker = field(init=False)
    _wish_maker: WishMaker = field(init=False)
    outbox: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.jobs = JobTable(tell_traced=self._traced_job_moved)
        self.next_free = NextFree(good_for_s=self.timing.probe_interval_s)
        self.workers = WorkerTable(probe_after_s=self.timing.probe_after_s)
        self.views = ViewMaker(
            broker_id=self.broker_id,
            epoch=self.epoch,
            heartbeat_interval_s=self.timing.heartbeat_interval_s,
        )
        self._wish_maker = WishMaker(workers=self.workers, jobs=self.jobs, timing=self.timing)
        self.is_rebuilt = self.window_s == 0

    def advance(self, now: float) -> None:
        """An event has come."""
        self.now = now
        if self.started_at is None:
            self.started_at = now
        self.hear_until(self.heard_until)

    def hear_until(self, instant: float | None) -> None:
        """Silence is judged no later than then; None: at the present.

        Not put off without end: who floods this broker must not keep the dead alive.
        """
        self.heard_until = instant
        excused_since = self.now - self.timing.backlog_excuse_s
        known_at = self.now if instant is None else min(self.now, max(instant, excused_since))
        self.silence_at = max(self.silence_at, known_at)
        self.workers.advance(self.silence_at)

    def pardon(self, absence_s: float) -> None:
        """Time in which the broker could hear nobody counts for nobody."""
        self.workers.pardon(absence_s, self.now)
        self.workers.advance(self.silence_at)
        for frontend in self.frontends:
            frontend.pardon(absence_s, self.now)
        for job in self.jobs:
            job.pardon(absence_s, self.now)
        if self.started_at is not None and self.is_rebuilding_at(self.now - absence_s):
            self.started_at += absence_s

    @property
    def age_s(self) -> float:
        return 0.0 if self.started_at is None else self.now - self.started_at

    @property
    def is_rebuilding(self) -> bool:
        """So short a time after the start that peers of an earlier broker may not have found this one."""
        return self.is_rebuilding_at(self.now)

    def is_rebuilding_at(self, now: float) -> bool:
        return self.started_at is None or now < self.started_at + self.window_s

    @property
    def rebuilt_at(self) -> float:
        """The end of the rebuild window."""
        return (self.now if self.started_at is None else self.started_at) + self.window_s

    @property
    def window_s(self) -> float:
        """How long that is. What other brokers began later on is given its time by the first one too."""
        return 0.0 if self.is_first else self.timing.rebuild_s

    def shed(self, kind: str) -> None:
        """Something was dropped to keep a bound or a fence."""
        self.counters.shed[kind] += 1

    def ready_workers(self) -> int:
        """Those with a loaded model, idle or busy, that can be heard."""
        return len(self.workers.serving)

    def send_worker(self, route: bytes, message: ToWorker) -> None:
        self.outbox.append(SendToWorker(route=route, message=message))

    def send_frontend(self, route: bytes, message: ToFrontend) -> None:
        self.outbox.append(SendToFrontend(route=route, message=message))

    def send_worker_view(self, worker: Worker) -> None:
        self.send_worker(worker.route, self.views.for_worker(worker, self.wishes(worker)))

    def ask_for_image(self, worker: Worker, execution_id: bytes) -> None:
        """It is held there, and has to be passed on again, or to one who came later."""
        wishes = Wishes(resend=(execution_id,), wanted=self._wish_maker.wanted(worker))
        self.send_worker(worker.route, self.views.for_worker(worker, wishes))

    def wishes(self, worker: Worker) -> Wishes:
        return self._wish_maker.wishes(worker, self._moment())

    def _moment(self) -> Moment:
        return Moment(now=self.now, is_rebuilt=self.is_rebuilt)

    def own(self, job: Job, execution_id: bytes) -> None:
        """This broker has begun or adopted it: it goes on for a job that is known here, or not at all."""
        job.executions.append(execution_id)
        self._wish_maker.own(execution_id)

    def disown(self, execution_id: bytes) -> None:
        """From now on it is as if another broker had begun it."""
        self._wish_maker.disown(execution_id)

    def let_go(self, execution_id: bytes, worker_id: str) -> None:
        """Its call has moved to another broker: it is left alone until that one has had time to want it."""
        self.disown(execution_id)
        worker = self.workers.registered.get(worker_id)
        if worker is not None:
            worker.unwanted_since[execution_id] = self.now

    def runs_unowned(self, worker: Worker) -> bool:
        """Whether it runs something that no known job wants, and that goes on all the same."""
        running = worker.running
        if running is None or self.jobs.wanting(running.execution_id) is not None:
            return False
        return self._wish_maker.goes_on(worker, running, self._moment())

    def has_execution_of(self, worker: Worker, claim: JobClaim) -> bool:
        """Whether it runs this very job, or holds its image, and this broker has not told it to."""
        running = worker.running
        found = [outcome for outcome in worker.held_for(claim) if outcome.failure is None]
        executions = [(each.execution_id, each.claim) for each in found]
        if running is not None and not running.stopping:
            executions.append((running.execution_id, running.claim))
        return worker.unreachable_since is None and any(
            theirs.job_id == claim.job_id
            and is_same_image(theirs, claim)
            and self._wish_maker.is_foreign(execution_id)
            for execution_id, theirs in executions
        )

    def strays(self) -> list[Worker]:
        """Those that run what no known job wants: they were told to stop, or it goes on all the same."""
        running = self.workers.running
        return [running[execution_id] for execution_id in running.keys() - self.jobs.by_execution.keys()]

    def may_be_joined(self, worker: Worker, running: RunningExecution) -> bool:
        """Whether a repeat may take over what it has not begun itself: an execution that goes on anyway."""
        return self._wish_maker.may_be_joined(worker, running, self._moment())

    def images_of(self, claim: JobClaim) -> list[tuple[Worker, HeldOutcome]]:
        """All images of this idempotency key, and where they are; the one that repeats get is the first."""
        return self._wish_maker.images_of(claim)

    def tell_waiters(self, job: Job) -> None:
        for waiter_id in job.waiters:
            self.tell_waiter(job, waiter_id)

    def tell_waiter(self, job: Job, waiter_id: bytes) -> None:
        frontend = self.frontends.get(job.waiters[waiter_id].frontend)
        if frontend is not None:
            self.send_statuses(frontend, job.status(waiter_id))

    def send_statuses(self, frontend: Frontend, *statuses: JobStatus) -> None:
        view = self.views.for_frontend(
            frontend,
            statuses,
            ready_workers=self.ready_workers(),
            draining=self.draining,
            rebuilding=self.is_rebuilding,
        )
        self.send_frontend(frontend.route, view)

    def _traced_job_moved(self, job: Job, trace: TraceContext, state: State | None) -> None:
        moved = TracedJobMoved(
            job_id=job.job_id, trace=trace, state=state, attempts=job.attempts, at=self.now
        )
        self.outbox.append(moved)

    def note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self.outbox.append(Note(event, fields, level))
