"""The frontend's decisions about jobs, without sockets and clock: `events.py` in, `actions.py` out.

It owns each job until its RPC has ended: it reports the open ones, submits again what a broker does not know,
and ends each with the first outcome that arrives or at its deadline, whatever the broker does.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, assert_never

from frontend.actions import (
    Action,
    EndJob,
    ImageDelivered,
    JobEnd,
    JobGivenUp,
    JobRefused,
    ReconnectToBroker,
    SendToBroker,
    SnapshotArrived,
)
from frontend.events import (
    DrainRequested,
    Event,
    FromBroker,
    JobOpened,
    LeaveRequested,
    SnapshotWanted,
    TimerFired,
    WaiterLeft,
)
from frontend.validation import ValidJob
from proto.contact import BrokerContact
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    FrontendReport,
    FrontendView,
    JobClaim,
    JobState,
    JobStatus,
    Leave,
    Outcome,
    Refuse,
    Snapshot,
    SnapshotRequest,
    Submit,
    ToBrokerFromFrontend,
    ToFrontend,
)
from proto.notes import Note, NoteLevel
from proto.timing import Timing

FULL_RETRY_S: Final = 1.0
DRAIN_RETRY_S: Final = 1.0
"""Another frontend, or this one started again, may take it: a repeat is safe, as the broker ends what this
frontend leaves behind, or, where it has an idempotency key, joins the repeat to it."""
GATHER_S: Final = 0.02
"""Jobs that end within this time are told in one report: a thousand ends are not a thousand reports."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """Sent, and neither taken nor refused yet."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A broker has taken it: it is refused no more."""

    execution_id: bytes | None
    """The latest one heard of."""


@dataclass(slots=True, kw_only=True)
class DeskJob:
    """An RPC that waits."""

    opened: JobOpened
    deadline: float
    """When the RPC ends, whatever becomes of the job."""
    job_deadline: float
    state: Submitted | Accepted = Submitted()
    submit_seq: int = 0
    """Of its latest SUBMIT: a view that does not echo it says nothing about this job."""
    attempts: int = 0
    crashes: int = 0

    @property
    def job(self) -> ValidJob:
        return self.opened.job

    @property
    def execution_id(self) -> bytes | None:
        return self.state.execution_id if isinstance(self.state, Accepted) else None

    def count(self, attempts: int, crashes: int) -> None:
        """Somebody else's counters: whoever has seen more is right."""
        self.attempts, self.crashes = max(self.attempts, attempts), max(self.crashes, crashes)


@dataclass(slots=True, kw_only=True)
class JobDesk:
    frontend_id: str
    incarnation: bytes
    """This life of the frontend process."""
    timing: Timing
    started_at: float
    max_open_jobs: int = 1024
    brokers: int = 1
    """How many it is connected to."""

    jobs: dict[bytes, DeskJob] = field(default_factory=dict)
    """By `job_id`: exactly the RPCs that wait for an answer."""
    draining: bool = False
    refusals: Counter[RefusalReason] = field(default_factory=Counter)
    """Its own, not the broker's."""
    _ready_workers: int = 0
    _unreported_keys: set[str] = field(default_factory=set)
    """Keys with jobs that were given up, and that the broker still counts."""
    contact: BrokerContact = field(init=False)
    _over: bool = False
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.contact = BrokerContact(timing=self.timing, started_at=self.started_at)

    # --- In and out ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        if self._over:
            return []
        match event:
            case JobOpened():
                self._open(event, now)
            case WaiterLeft(job_id=job_id):
                self._give_up(job_id, now)
            case FromBroker(message=message):
                self._from_broker(message, now)
            case SnapshotWanted():
                self._send(SnapshotRequest(seq=self.contact.next_seq()))
            case DrainRequested():
                self.draining = True
            case LeaveRequested():
                self._leave()
            case TimerFired():
                pass  # Whatever is due is done below, after every event.
            case _:
                assert_never(event)
        self._do_what_is_due(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When to send `TimerFired`, on the clock of `handle`; None once the desk has left."""
        if self._over:
            return None
        instants = [self.contact.next_report_at, self.contact.silent_at]
        instants += [job.deadline for job in self.jobs.values()]
        if any(isinstance(job.state, Submitted) for job in self.jobs.values()):
            instants.append(self.contact.unreachable_at)
        return min(instants)

    def broker_alive(self, now: float) -> bool:
        """A broker has been heard of within `broker_silent_s`."""
        return self.contact.epoch is not None and not self.contact.is_unreachable(now)

    def ready_workers(self, now: float) -> int:
        """Workers with a loaded model, idle or busy; 0 while no broker answers."""
        return self._ready_workers if self.broker_alive(now) else 0

    def _do_what_is_due(self, now: float) -> None:
        if self._over:
            return
        for job_id, job in list(self.jobs.items()):
            if now >= job.deadline:
                given_up = JobGivenUp(
                    code=FailureCode.DEADLINE_EXCEEDED,
                    detail="the deadline has passed",
                    attempts=job.attempts,
                )
                self._end(job_id, given_up, now)
        if self.contact.is_unreachable(now):
            self._refuse_unanswered(now)
        if now >= self.contact.silent_at:
            self._reconnect(now)
        if now >= self.contact.next_report_at:
            self._report(now)

    def _note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))

    def _send(self, message: ToBrokerFromFrontend) -> None:
        self._actions.append(SendToBroker(message=message))

    # --- Jobs ----------------------------------------------------------------------------------

    def _open(self, opened: JobOpened, now: float) -> None:
        refusal = self._why_not(now)
        if refusal is not None:
            self.refusals[refusal.reason] += 1
            self._actions.append(EndJob(job_id=opened.job_id, end=refusal))
            return
        if opened.key_fingerprint in self._unreported_keys:
            self._report(now)
        job_time_s = opened.time_remaining_s if opened.job_time_s is None else opened.job_time_s
        job = DeskJob(opened=opened, deadline=now + opened.time_remaining_s, job_deadline=now + job_time_s)
        self.jobs[opened.job_id] = job
        self._submit(job, now)

    def _why_not(self, now: float) -> JobRefused | None:
        if self.draining:
            reason, detail, retry_s = RefusalReason.FRONTEND_DRAINING, "", DRAIN_RETRY_S
        elif len(self.jobs) >= self.max_open_jobs:
            reason, detail = RefusalReason.FRONTEND_FULL, f"{len(self.jobs)} calls are waiting already"
            retry_s = FULL_RETRY_S
        elif self.contact.is_unreachable(now):
            return self._unreachable()
        else:
            return None
        return JobRefused(reason=reason, detail=detail, retry_after_s=retry_s)

    def _unreachable(self) -> JobRefused:
        return JobRefused(
            reason=RefusalReason.BROKER_UNREACHABLE,
            detail=f"no broker has answered for {self.timing.broker_silent_s:g} s",
            retry_after_s=self.timing.heartbeat_interval_s,
        )

    def _refuse_unanswered(self, now: float) -> None:
        for job_id, job in list(self.jobs.items()):
            if isinstance(job.state, Submitted):
                self.refusals[RefusalReason.BROKER_UNREACHABLE] += 1
                self._end(job_id, self._unreachable(), now)

    def _give_up(self, job_id: bytes, now: float) -> None:
        """Nobody waits for it; the broker learns it from the next report."""
        job = self.jobs.pop(job_id, None)
        if job is not None:
            self._unreported_keys.add(job.opened.key_fingerprint)
            self.contact.report_within(now, GATHER_S)

    def _submit(self, job: DeskJob, now: float) -> None:
        job.submit_seq = self.contact.next_seq()
        claim = JobClaim(
            job_id=job.opened.job_id,
            key_fingerprint=job.opened.key_fingerprint,
            parameters_digest=job.job.digest,
            idempotency_hash=job.opened.idempotency_hash,
            detach=job.opened.detach,
            remaining_ms=max(0, round((job.job_deadline - now) * 1000)),
            attempts=job.attempts,
            crashes=job.crashes,
        )
        self._send(
            Submit(
                frontend_id=self.frontend_id,
                incarnation=self.incarnation,
                seq=job.submit_seq,
                claim=claim,
                parameters=job.job.parameters,
                accepted=isinstance(job.state, Accepted),
                execution_id=job.execution_id,
                key_job_limit=job.opened.key_job_limit,
                body=job.job.prompt.encode(),
            )
        )

    def _end(self, job_id: bytes, end: JobEnd, now: float) -> None:
        match end:
            case JobRefused(reason=reason) if reason is not RefusalReason.BROKER_UNREACHABLE:
                del self.jobs[job_id]  # The broker has no such job.
            case ImageDelivered() | JobGivenUp() | JobRefused():
                self._give_up(job_id, now)
            case _:
                assert_never(end)
        self._actions.append(EndJob(job_id=job_id, end=end))

    # --- The broker ----------------------------------------------------------------------------

    def _from_broker(self, message: ToFrontend, now: float) -> None:
        if not (isinstance(message, Refuse) and message.job_id is None):
            self.contact.heard(now)  # A broker that serves nobody is as good as none.
        match message:
            case FrontendView():
                self._viewed(message, now)
            case Outcome():
                self._outcome_came(message, now)
            case Refuse(job_id=None, reason=reason, detail=detail):
                if self.contact.refused(reason):
                    self._note(
                        "broker does not serve this frontend", "error", reason=reason.value, detail=detail
                    )
            case Refuse():
                self._refused(message, now)
            case Snapshot():
                self._actions.append(SnapshotArrived(snapshot=message))
            case _:
                assert_never(message)

    def _viewed(self, view: FrontendView, now: float) -> None:
        if self.contact.viewed(view, now):
            self._note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
        self._ready_workers = 0 if view.draining else view.ready_workers
        for status in view.jobs:
            self._status_came(status, view.echo, now)

    def _status_came(self, status: JobStatus, echo: int, now: float) -> None:
        job = self.jobs.get(status.job_id)
        if job is None:
            return
        job.count(status.attempts, status.crashes)
        match status.state:
            case JobState.UNKNOWN:
                if echo >= job.submit_seq:
                    self._submit(job, now)
            case JobState.PENDING:
                pass  # The broker has it and will judge it: until then it is what it was.
            case JobState.QUEUED | JobState.RUNNING | JobState.ENDED:
                job.state = Accepted(status.execution_id or job.execution_id)
            case _:
                assert_never(status.state)

    def _outcome_came(self, outcome: Outcome, now: float) -> None:
        job = self.jobs.get(outcome.job_id)
        if job is None:
            return  # It was delivered before, or its waiter has left.
        job.count(outcome.attempts, outcome.crashes)
        if outcome.image is not None:
            end: JobEnd = ImageDelivered(
                png=outcome.body,
                inference_time_s=outcome.image.inference_time_s,
                seed=outcome.image.seed,
                worker_id=outcome.worker_id,
                attempts=outcome.attempts,
                model=outcome.image.model,
            )
        elif outcome.failure is not None:
            failure = outcome.failure
            end = JobGivenUp(code=failure.code, detail=failure.detail, attempts=job.attempts)
        else:
            return  # The codec lets no such outcome through.
        self._end(outcome.job_id, end, now)

    def _refused(self, refuse: Refuse, now: float) -> None:
        job = None if refuse.job_id is None else self.jobs.get(refuse.job_id)
        if job is None or isinstance(job.state, Accepted):
            return  # A refusal that was overtaken by an acceptance.
        retry_after_s = None if refuse.retry_after_ms is None else refuse.retry_after_ms / 1000
        refused = JobRefused(reason=refuse.reason, detail=refuse.detail, retry_after_s=retry_after_s)
        self._end(job.opened.job_id, refused, now)

    def _reconnect(self, now: float) -> None:
        if self.contact.reconnected(now):
            silent_s = round(now - self.contact.last_heard_at, 3)
            self._note("broker silent, connecting anew", "warning", silent_s=silent_s)
        self._actions.append(ReconnectToBroker())

    def _report(self, now: float) -> None:
        self.contact.reported(now)
        self._unreported_keys.clear()
        self._send(
            FrontendReport(
                frontend_id=self.frontend_id,
                incarnation=self.incarnation,
                seq=self.contact.next_seq(),
                jobs=tuple(self.jobs),
            )
        )

    def _leave(self) -> None:
        for job_id in list(self.jobs):
            refused = JobRefused(
                reason=RefusalReason.FRONTEND_DRAINING,
                detail="this frontend has shut down",
                retry_after_s=DRAIN_RETRY_S,
            )
            self._actions.append(EndJob(job_id=job_id, end=refused))
            del self.jobs[job_id]
        self._send(Leave(incarnation=self.incarnation, seq=self.contact.next_seq(), reason="shutting down"))
        self._over = True

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        assert len(self.jobs) <= self.max_open_jobs, "more open jobs than allowed"
        for job_id, job in self.jobs.items():
            assert job.opened.job_id == job_id, "a job under another id"
            assert 0 < job.submit_seq <= self.contact.seq, "a job that was never submitted"
