"""The frontend's decisions about jobs, without sockets and clock: `events.py` in, `actions.py` out.

It owns each job until its RPC has ended: it reports the open ones, submits again what a broker does not know
or can serve no longer, and ends each with the first outcome that arrives or at its deadline, whatever the
brokers do.
"""

from collections import Counter
from dataclasses import dataclass, field
from math import inf
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
from frontend.brokers import Brokers, Standing
from frontend.deadlines import Deadlines
from frontend.desk_job import Accepted, DeskJob, Submitted
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
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    FrontendReport,
    FrontendView,
    JobState,
    JobStatus,
    Leave,
    Outcome,
    Refuse,
    Snapshot,
    SnapshotRequest,
    ToBrokerFromFrontend,
    ToFrontend,
)
from proto.notes import Note, NoteLevel
from proto.timing import Timing

FULL_RETRY_S: Final = 1.0
DRAIN_RETRY_S: Final = 1.0
"""Another frontend, or this one started again, may take it: a repeat is safe, as the broker ends what this
frontend leaves behind, or, where it has an idempotency key, joins the repeat to it."""
ASK_ANOTHER: Final = frozenset({RefusalReason.NO_WORKERS, RefusalReason.WORKERS_NOT_READY})
"""Refusals that say more of the broker than of the service."""
GATHER_S: Final = 0.02
"""Jobs that end within this time are told in one report: a thousand ends are not a thousand reports."""


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
    contacts: Brokers = field(init=False)
    _deadlines: Deadlines = field(default_factory=Deadlines)
    _submitted: dict[bytes, DeskJob] = field(default_factory=dict)
    """Those among the jobs that no broker has taken yet."""
    _over: bool = False
    _actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.contacts = Brokers(timing=self.timing, started_at=self.started_at, count=self.brokers)

    # --- In and out ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        if self._over and not isinstance(event, JobOpened):
            return []  # Calls may still come, until the port is closed: each has to get its reason.
        match event:
            case JobOpened():
                self._open(event, now)
            case WaiterLeft(job_id=job_id):
                self._give_up(job_id, now)
            case FromBroker(broker=broker, message=message):
                self._from_broker(broker, message, now)
            case SnapshotWanted():
                for broker in self.contacts.heard(now):
                    self._send(broker, SnapshotRequest(seq=self.contacts[broker].contact.next_seq()))
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
        instants = [self.contacts.next_deadline(), self._deadlines.first()]
        with_submitted = {job.broker for job in self._submitted.values()}
        instants += [self.contacts[broker].contact.unreachable_at for broker in with_submitted]
        return min(instants)

    def broker_alive(self, now: float) -> bool:
        """A broker has been heard of within `broker_silent_s`."""
        return bool(self.contacts.heard(now))

    def ready_workers(self, now: float) -> int:
        """Workers with a loaded model, idle or busy; 0 while no broker answers."""
        return self.contacts.ready_workers(now)

    def _do_what_is_due(self, now: float) -> None:
        if self._over:
            return
        for job_id in self._deadlines.passed(now):
            given_up = JobGivenUp(
                code=FailureCode.DEADLINE_EXCEEDED,
                detail="the deadline has passed",
                attempts=self.jobs[job_id].attempts,
            )
            self._end(job_id, given_up, now)
        self._move_calls(now)
        self._refuse_unanswered(now)
        for broker in self.contacts:
            contact = self.contacts[broker].contact
            if now >= contact.silent_at:
                self._reconnect(broker, now)
            if now >= contact.next_report_at:
                self._report(broker, now)

    def _note(self, event: str, level: NoteLevel = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))

    def _send(self, broker: int, message: ToBrokerFromFrontend) -> None:
        self._actions.append(SendToBroker(broker=broker, message=message))

    # --- Jobs ----------------------------------------------------------------------------------

    def _open(self, opened: JobOpened, now: float) -> None:
        refusal = self._why_not(now)
        if refusal is not None:
            self.refusals[refusal.reason] += 1
            self._actions.append(EndJob(job_id=opened.job_id, end=refusal))
            return
        broker = self.contacts.best(now)
        if opened.key_fingerprint in self.contacts[broker].unreported_keys:
            self._report(broker, now)
        job_time_s = opened.time_remaining_s if opened.job_time_s is None else opened.job_time_s
        job = DeskJob(
            opened=opened,
            deadline=now + opened.time_remaining_s,
            job_deadline=now + job_time_s,
            broker=broker,
        )
        self._add(job)
        self._submit(job, now)

    def _add(self, job: DeskJob) -> None:
        job_id = job.opened.job_id
        self.jobs[job_id] = self._submitted[job_id] = job
        self._deadlines.add(job_id, job.deadline)
        self.contacts[job.broker].calls += 1

    def _take_out(self, job_id: bytes) -> DeskJob | None:
        """None if it has ended already."""
        job = self.jobs.pop(job_id, None)
        if job is not None:
            self._submitted.pop(job_id, None)
            self._deadlines.remove(job_id, job.deadline)
            self.contacts[job.broker].calls -= 1
        return job

    def _why_not(self, now: float) -> JobRefused | None:
        if self.draining:
            reason, detail, retry_s = RefusalReason.FRONTEND_DRAINING, "", DRAIN_RETRY_S
        elif len(self.jobs) >= self.max_open_jobs:
            reason, detail = RefusalReason.FRONTEND_FULL, f"{len(self.jobs)} calls are waiting already"
            retry_s = FULL_RETRY_S
        elif self.contacts.standing(self.contacts.best(now), now) is Standing.SILENT:
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
        silent = {
            broker for broker in self.contacts if self.contacts.standing(broker, now) is Standing.SILENT
        }
        if not silent:
            return
        for job_id in [job_id for job_id, job in self._submitted.items() if job.broker in silent]:
            self.refusals[RefusalReason.BROKER_UNREACHABLE] += 1
            self._end(job_id, self._unreachable(), now)

    def _give_up(self, job_id: bytes, now: float) -> None:
        """Nobody waits for it; its brokers learn it from their next reports."""
        job = self._take_out(job_id)
        if job is not None:
            for broker in (job.broker, *job.left):
                self.contacts[broker].unreported_keys.add(job.opened.key_fingerprint)
                self.contacts[broker].contact.report_within(now, GATHER_S)

    def _move_calls(self, now: float) -> None:
        """Away from brokers that can serve them no longer, if there is one that can."""
        to = self.contacts.best(now)
        if not self.contacts.keeps_calls(to, now):
            return
        for broker in self.contacts:
            if self.contacts[broker].calls and not self.contacts.keeps_calls(broker, now):
                self._move([job for job in self.jobs.values() if job.broker == broker], to, now)

    def _move(self, calls: list[DeskJob], to: int, now: float) -> None:
        """All from one broker."""
        old, new = self.contacts[calls[0].broker], self.contacts[to]
        names = {"broker_id": new.contact.broker_id, "instead_of": old.contact.broker_id}
        self._note("calls move to another broker", "warning", calls=len(calls), **names)
        old.contact.report_soon(now)
        old.calls -= len(calls)
        new.calls += len(calls)
        for job in calls:
            job.move(to)
            self._submit(job, now)

    def _submit(self, job: DeskJob, now: float) -> None:
        seq = self.contacts[job.broker].contact.next_seq()
        self._send(job.broker, job.submit(seq, self.frontend_id, self.incarnation, now))

    def _end(self, job_id: bytes, end: JobEnd, now: float) -> None:
        match end:
            case JobRefused(reason=reason) if reason is not RefusalReason.BROKER_UNREACHABLE:
                self._take_out(job_id)  # The broker has no such job; others will miss it in their reports.
            case ImageDelivered() | JobGivenUp() | JobRefused():
                self._give_up(job_id, now)
            case _:
                assert_never(end)
        self._actions.append(EndJob(job_id=job_id, end=end))

    # --- The brokers ---------------------------------------------------------------------------

    def _from_broker(self, broker: int, message: ToFrontend, now: float) -> None:
        contact = self.contacts[broker].contact
        match message:
            case FrontendView():
                self._viewed(broker, message, now)
            case Outcome():
                contact.heard(now)
                self._outcome_came(broker, message, now)
            case Refuse(job_id=None, reason=reason, detail=detail):  # As good as silence.
                if contact.refused(reason):
                    self._note(
                        "broker does not serve this frontend",
                        "error",
                        broker=broker,
                        reason=reason.value,
                        detail=detail,
                    )
            case Refuse():
                contact.heard(now)
                self._refused(broker, message, now)
            case Snapshot():  # Given to anybody: no sign that this broker serves, or knows, this frontend.
                self._actions.append(SnapshotArrived(broker=broker, snapshot=message))
            case _:
                assert_never(message)

    def _viewed(self, broker: int, view: FrontendView, now: float) -> None:
        if self.contacts[broker].viewed(view, now):
            self._note("broker answers", broker_id=view.broker_id, epoch=view.epoch)
            for double in self.contacts.doubles(view.epoch, now):
                names = {"broker": double, "broker_id": view.broker_id}
                self._note("two endpoints lead to one broker", "error", **names)
            if self.contacts.has_namesake(broker, now):
                self._note("two brokers have one name", "warning", broker=broker, broker_id=view.broker_id)
        for status in view.jobs:
            self._status_came(broker, status, view.echo, now)

    def _status_came(self, broker: int, status: JobStatus, echo: int, now: float) -> None:
        job = self.jobs.get(status.job_id)
        if job is None:
            return
        job.count(status.attempts, status.crashes)
        if broker != job.broker:
            return  # It has moved: what this one makes of it is over.
        match status.state:
            case JobState.UNKNOWN:
                if echo >= job.submit_seq:
                    self._submit(job, now)
            case JobState.PENDING:
                pass  # The broker has it and will judge it: until then it is what it was.
            case JobState.QUEUED | JobState.RUNNING | JobState.ENDED:
                job.state = Accepted(status.execution_id or job.execution_id)
                self._submitted.pop(status.job_id, None)
            case _:
                assert_never(status.state)

    def _outcome_came(self, broker: int, outcome: Outcome, now: float) -> None:
        """An image is one from wherever it comes; whether there will be none, its present broker knows."""
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
        elif outcome.failure is not None and broker == job.broker:
            failure = outcome.failure
            if failure.code is FailureCode.WORKER_LOST and self._try_elsewhere(job, now):
                return
            end = JobGivenUp(code=failure.code, detail=failure.detail, attempts=job.attempts)
        else:
            return
        self._end(outcome.job_id, end, now)

    def _try_elsewhere(self, job: DeskJob, now: float) -> bool:
        """Its broker finds no worker for it, and may be the only one that is cut off from them."""
        job.given_up_by.add(job.broker)
        for broker in self.contacts:
            if broker not in job.given_up_by and self.contacts.standing(broker, now) is Standing.LIVE:
                self._move([job], broker, now)
                return True
        return False

    def _refused(self, broker: int, refuse: Refuse, now: float) -> None:
        job = None if refuse.job_id is None else self.jobs.get(refuse.job_id)
        if job is None or broker != job.broker or isinstance(job.state, Accepted):
            return  # A refusal that was overtaken by an acceptance, or by a move.
        if refuse.reason is RefusalReason.BROKER_DRAINING:
            self.contacts[broker].draining = True  # Its view says so too, and may come later.
            self._move_calls(now)
            if job.broker != broker:
                return
        if refuse.reason in ASK_ANOTHER and self._try_elsewhere(job, now):
            return
        retry_after_s = None if refuse.retry_after_ms is None else refuse.retry_after_ms / 1000
        refused = JobRefused(reason=refuse.reason, detail=refuse.detail, retry_after_s=retry_after_s)
        self._end(job.opened.job_id, refused, now)

    def _reconnect(self, broker: int, now: float) -> None:
        contact = self.contacts[broker].contact
        if (event := contact.reconnected(now)) is not None:
            silent_s = round(now - contact.last_heard_at, 3)
            self._note(event, "warning", broker=broker, broker_id=contact.broker_id, silent_s=silent_s)
        self._actions.append(ReconnectToBroker(broker=broker))

    def _report(self, broker: int, now: float) -> None:
        known = self.contacts[broker]
        known.contact.reported(now)
        if self.contacts.is_double(broker, now):
            return
        known.unreported_keys.clear()
        self._send(
            broker,
            FrontendReport(
                frontend_id=self.frontend_id,
                incarnation=self.incarnation,
                seq=known.contact.next_seq(),
                jobs=tuple(job_id for job_id, job in self.jobs.items() if job.broker == broker),
                elsewhere=tuple(job_id for job_id, job in self.jobs.items() if broker in job.left),
            ),
        )

    def _leave(self) -> None:
        for job_id in list(self.jobs):
            refused = JobRefused(
                reason=RefusalReason.FRONTEND_DRAINING,
                detail="this frontend has shut down",
                retry_after_s=DRAIN_RETRY_S,
            )
            self._actions.append(EndJob(job_id=job_id, end=refused))
            self._take_out(job_id)
        for broker in self.contacts:
            seq = self.contacts[broker].contact.next_seq()
            self._send(broker, Leave(incarnation=self.incarnation, seq=seq, reason="shutting down"))
        self.draining = self._over = True

    # --- Invariants ----------------------------------------------------------------------------

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself. For tests, after every step."""
        assert len(self.jobs) <= self.max_open_jobs, "more open jobs than allowed"
        for job_id, job in self.jobs.items():
            assert job.opened.job_id == job_id, "a job under another id"
            seq = self.contacts[job.broker].contact.seq
            assert 0 < job.submit_seq <= seq, "a job that was never submitted"
            assert job.broker not in job.left, "a job both at a broker and elsewhere"
            assert isinstance(job.state, Submitted) == (job_id in self._submitted), "who waits for a broker"
        at = Counter(job.broker for job in self.jobs.values())
        assert all(self.contacts[broker].calls == at[broker] for broker in self.contacts), "calls at a broker"
        assert self._submitted.keys() <= self.jobs.keys(), "a job that has ended waits for a broker"
        deadlines = sorted((job.deadline, job_id) for job_id, job in self.jobs.items())
        assert [job_id for _, job_id in deadlines] == self._deadlines.passed(inf), "other deadlines"
