"""The broker's decisions, without sockets and clock. Told by `events.py`, answering with `actions.py`.

What it knows of workers and jobs is a cache, rebuilt from their reports. What it wants of a worker is never
stored but derived from the job table whenever a view is made (PROTOCOL.md §5.7).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from broker.actions import Action, SendToFrontend, SendToWorker
from broker.admission import Admission, Refusal
from broker.estimates import RunTimes
from broker.events import (
    DrainRequested,
    Event,
    FromFrontend,
    FromWorker,
    FrontendUnreachable,
    TimerFired,
    WorkerUnreachable,
)
from broker.frontends import Frontend, FrontendTable
from broker.invariants import check_tables
from broker.jobs import (
    MAX_ATTEMPTS,
    Delivering,
    Dispatched,
    Failed,
    Job,
    JobTable,
    Queued,
    Returned,
)
from broker.snapshot import Counters, snapshot
from broker.views import ViewMaker
from broker.workers import Idle, Offered, Running, Slot, Unclear, Worker, WorkerTable
from proto.failures import RETRYABLE_FAILURES, FailureCode, RefusalReason
from proto.messages import (
    FrontendReport,
    JobFailed,
    JobState,
    JobStatus,
    Leave,
    Message,
    Outcome,
    Refuse,
    SnapshotRequest,
    Start,
    Submit,
    WorkerPhase,
    WorkerReport,
    WorkerView,
)
from proto.notes import Note
from proto.timing import Timing


@dataclass(slots=True, kw_only=True)
class Broker:
    broker_id: str
    epoch: bytes
    """This life of the broker."""
    new_execution_id: Callable[[], bytes]
    timing: Timing
    queue_limit: int = 0
    """New jobs that may wait for a worker to become idle."""

    workers: WorkerTable = field(default_factory=WorkerTable)
    jobs: JobTable = field(default_factory=JobTable)
    frontends: FrontendTable = field(default_factory=FrontendTable)
    run_times: RunTimes = field(default_factory=RunTimes)
    counters: Counters = field(default_factory=Counters)
    draining: bool = False
    _views: ViewMaker = field(init=False)
    _next_round_at: float | None = None
    _actions: list[Action] = field(default_factory=list)
    _told_ready: int = 0

    def __post_init__(self) -> None:
        self._views = ViewMaker(
            broker_id=self.broker_id,
            epoch=self.epoch,
            heartbeat_interval_s=self.timing.heartbeat_interval_s,
        )

    def check_invariants(self) -> None:
        """Raise AssertionError if the tables contradict each other."""
        check_tables(self.workers, self.jobs, self.frontends)

    # --- In and out ----------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take one event at the instant `now` (seconds of a monotonic clock) and say what is to be done."""
        match event:
            case FromWorker(route=route, message=message):
                self._from_worker(route, message, now)
            case FromFrontend(route=route, message=message):
                self._from_frontend(route, message, now)
            case WorkerUnreachable(route=route):
                self._worker_unreachable(route, now)
            case FrontendUnreachable():
                pass  # Its reports say where it is; silence ends it.
            case DrainRequested():
                self._drain(now)
            case TimerFired():
                self._make_round(now)
            case _:
                assert_never(event)
        self._dispatch(now)
        self._tell_readiness(now)
        self._arm(now)
        actions, self._actions = self._actions, []
        return actions

    def next_deadline(self) -> float | None:
        """When to send `TimerFired`, on the clock of `handle`; None while there is nobody to watch."""
        return self._next_round_at

    def _arm(self, now: float) -> None:
        watching = bool(len(self.workers) or self.workers.lost or len(self.jobs) or len(self.frontends))
        if not watching:
            self._next_round_at = None
        elif self._next_round_at is None or self._next_round_at <= now:
            self._next_round_at = now + self.timing.probe_interval_s

    def _note(self, event: str, level: str = "info", **fields: object) -> None:
        self._actions.append(Note(event, fields, level))  # type: ignore[arg-type]

    # --- Workers -------------------------------------------------------------------------------

    def _from_worker(self, route: bytes, message: Message, now: float) -> None:
        match message:
            case WorkerReport():
                self._worker_reported(route, message, now)
            case Outcome():
                self._outcome_came(message, now)
            case Refuse():
                self._start_refused(route, message, now)
            case Leave():
                self._worker_left(message, now)
            case _:
                self._note("worker sent a message of another role", "warning", kind=type(message).__name__)

    def _worker_reported(self, route: bytes, report: WorkerReport, now: float) -> None:
        if report.incarnation in self.workers.fenced:
            detail = f"another worker has registered as {report.worker_id!r}"
            self._send_worker(route, Refuse(reason=RefusalReason.SUPERSEDED, detail=detail))
            return
        worker = self.workers.of_incarnation(report.worker_id, report.incarnation)
        if worker is None:
            worker = self._register(route, report, now)
        elif report.seq <= worker.seq:
            return
        worker.report, worker.route, worker.seq = report, route, report.seq
        worker.heard_at, worker.unreachable_since = now, None
        worker.slot = self._slot_after_report(worker, now)
        self._send_view(worker)

    def _register(self, route: bytes, report: WorkerReport, now: float) -> Worker:
        earlier = self.workers.registered.get(report.worker_id)
        if earlier is not None:
            self.workers.fence(earlier.incarnation)
            self._lose_worker(earlier, "superseded by a new process", now)
        worker = Worker(report=report, route=route, heard_at=now, seq=report.seq, slot=Idle(now))
        self.workers.add(worker)
        self._note(
            "worker registered", worker_id=report.worker_id, host=report.host, phase=report.phase.value
        )
        return worker

    def _slot_after_report(self, worker: Worker, now: float) -> Slot:
        """What the worker's own words make of what was believed of it. Repairs a lost START or OUTCOME."""
        running, before = worker.report.running, worker.slot
        if running is not None:
            if isinstance(before, Offered) and before.execution_id != running.execution_id:
                self._take_back(before.job_id, before.execution_id, now)
            return Running(running.claim.job_id, running.execution_id)
        match before:
            case Idle():
                return before
            case Unclear():
                return Idle(now)
            case Offered(job_id=job_id, execution_id=execution_id, sent_at=sent_at):
                if worker.holds(execution_id):
                    return Idle(now)
                if now - sent_at < self.timing.repeat_after_s:
                    return before  # This report may have crossed the START.
                job = self.jobs.dispatched_as(job_id, execution_id)
                if job is None:
                    return Idle(now)
                self._send_start(worker, job, execution_id, now)
                return Offered(job_id, execution_id, now)
            case Running(job_id=job_id, execution_id=execution_id):
                job = self.jobs.dispatched_as(job_id, execution_id)
                if job is not None and not worker.holds(execution_id):
                    failure = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker lost the outcome")
                    self._put_back(job, failure, now)
                return Idle(now)
            case _:
                assert_never(before)

    def _send_view(self, worker: Worker) -> None:
        self._send_worker(worker.route, self._views.for_worker(worker, self.jobs))

    def _worker_left(self, leave: Leave, now: float) -> None:
        worker = self.workers.by_incarnation(leave.incarnation)
        if worker is not None:
            self._give_up_worker(worker, f"left: {leave.reason}", now)
            self.workers.remove(worker)
            self._note("worker left", worker_id=worker.worker_id, reason=leave.reason)

    def _worker_unreachable(self, route: bytes, now: float) -> None:
        worker = self.workers.by_route(route)
        if worker is not None and worker.unreachable_since is None:
            worker.unreachable_since = now

    def _lose_worker(self, worker: Worker, reason: str, now: float) -> None:
        self._give_up_worker(worker, reason, now)
        self.workers.lose(worker, now)
        self._note("worker lost", "warning", worker_id=worker.worker_id, reason=reason)

    def _give_up_worker(self, worker: Worker, reason: str, now: float) -> None:
        for job in self.jobs.on_worker(worker.worker_id):
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail=f"worker {worker.worker_id}: {reason}")
            self._put_back(job, failure, now)

    # --- Frontends -----------------------------------------------------------------------------

    def _from_frontend(self, route: bytes, message: Message, now: float) -> None:
        match message:
            case FrontendReport():
                self._frontend_reported(route, message, now)
            case Submit():
                self._submitted(route, message, now)
            case SnapshotRequest(seq=seq):
                picture = snapshot(
                    self.broker_id, self.epoch, seq, now, self.workers, self.jobs, self.counters
                )
                self._actions.append(SendToFrontend(route=route, message=picture))
            case Leave(incarnation=incarnation):
                frontend = self.frontends.get(incarnation)
                if frontend is not None:
                    self._lose_frontend(frontend, "left", now)
            case _:
                self._note("frontend sent a message of another role", "warning", kind=type(message).__name__)

    def _frontend_reported(self, route: bytes, report: FrontendReport, now: float) -> None:
        frontend = self._heard_frontend(route, report, now)
        if report.seq <= frontend.report_seq:
            return
        frontend.report_seq = report.seq
        listed = {entry.job_id for entry in report.jobs}
        for job in self.jobs.owned_by(report.incarnation):
            if job.submit_seq > report.seq:
                continue
            if job.job_id in listed:
                self._deliver_again_if_due(job, now)
            else:
                self._end(job, now)
        self._send_statuses(frontend, *(self._status(entry.job_id) for entry in report.jobs))

    def _heard_frontend(self, route: bytes, message: FrontendReport | Submit, now: float) -> Frontend:
        if self.frontends.get(message.incarnation) is None:
            self._note("frontend registered", frontend_id=message.frontend_id)
        return self.frontends.heard(message.frontend_id, message.incarnation, route, message.seq, now)

    def _status(self, job_id: bytes) -> JobStatus:
        job = self.jobs.get(job_id)
        return JobStatus(job_id=job_id, state=JobState.UNKNOWN) if job is None else job.status()

    def _send_statuses(self, frontend: Frontend, *statuses: JobStatus) -> None:
        view = self._views.for_frontend(frontend, statuses, self._ready_workers(), self.draining)
        self._actions.append(SendToFrontend(route=frontend.route, message=view))

    def _tell_owner(self, job: Job) -> None:
        frontend = self.frontends.get(job.owner)
        if frontend is not None:
            self._send_statuses(frontend, job.status())

    def _ready_workers(self) -> int:
        return sum(worker.report.phase is WorkerPhase.READY for worker in self.workers)

    def _tell_readiness(self, now: float) -> None:
        ready = self._ready_workers()
        if ready != self._told_ready:
            self._told_ready = ready
            for frontend in self.frontends:
                self._send_statuses(frontend)

    def _lose_frontend(self, frontend: Frontend, reason: str, now: float) -> None:
        self.frontends.remove(frontend)
        self._note("frontend lost", "warning", frontend_id=frontend.frontend_id, reason=reason)
        for job in self.jobs.owned_by(frontend.incarnation):
            self._end(job, now)

    # --- The life of a job ---------------------------------------------------------------------

    def _submitted(self, route: bytes, submit: Submit, now: float) -> None:
        frontend = self._heard_frontend(route, submit, now)
        if submit.seq <= frontend.report_seq:
            return  # Overtaken by a report; whether the job is still wanted will be said again.
        job = self.jobs.get(submit.claim.job_id)
        if job is None:
            refusal = None if submit.accepted else self._admission().judge(submit, now)
            if refusal is not None:
                self._refuse(frontend, submit, refusal)
                return
            job = self._admit(submit, now)
        else:
            job.owner, job.submit_seq = submit.incarnation, submit.seq
        before = job.state
        self._dispatch(now)
        if job.state is before:
            self._tell_owner(job)  # Otherwise the dispatch has told it.

    def _admission(self) -> Admission:
        return Admission(
            workers=self.workers,
            jobs=self.jobs,
            run_times=self.run_times,
            timing=self.timing,
            queue_limit=self.queue_limit,
            draining=self.draining,
        )

    def _refuse(self, frontend: Frontend, submit: Submit, refusal: Refusal) -> None:
        self.counters.rejected[refusal.reason] += 1
        self._note("job refused", job_id=submit.claim.job_id, reason=refusal.reason.value)
        retry_after_ms = None if refusal.retry_after_s is None else round(refusal.retry_after_s * 1000)
        refuse = Refuse(
            reason=refusal.reason,
            detail=refusal.detail,
            job_id=submit.claim.job_id,
            retry_after_ms=retry_after_ms,
        )
        self._actions.append(SendToFrontend(route=frontend.route, message=refuse))

    def _admit(self, submit: Submit, now: float) -> Job:
        job = Job(
            claim=submit.claim,
            parameters=submit.parameters,
            prompt=submit.body,
            owner=submit.incarnation,
            submit_seq=submit.seq,
            deadline=now + submit.claim.remaining_ms / 1000,
            attempts=submit.claim.attempts,
            crashes=submit.claim.crashes,
            state=Queued(now),
        )
        self.jobs.add(job)
        if submit.accepted:
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail="accepted by an earlier broker")
            self._put_back(job, failure, now)
        self._note(
            "job admitted",
            job_id=job.job_id,
            key=job.claim.key_fingerprint,
            width=job.parameters.width,
            height=job.parameters.height,
            steps=job.parameters.steps,
            again=submit.accepted,
        )
        return job

    def _dispatch(self, now: float) -> None:
        """Give waiting jobs to idle workers: returned jobs first, the longest idle worker first."""
        waiting = self.jobs.waiting()
        if not waiting:
            return
        idle = [
            (worker.slot.since, worker)
            for worker in self.workers
            if isinstance(worker.slot, Idle) and worker.is_serving(now, self.timing.probe_after_s)
        ]
        for job in waiting:
            if not idle:
                return
            choice = min(idle, key=lambda entry: (entry[1].worker_id == job.last_worker_id, entry[0]))
            idle.remove(choice)
            self._start(job, choice[1], now)

    def _start(self, job: Job, worker: Worker, now: float) -> None:
        execution_id = self.new_execution_id()
        job.attempts += 1
        job.last_worker_id = worker.worker_id
        job.state = Dispatched(worker.worker_id, execution_id, now)
        worker.slot = Offered(job.job_id, execution_id, now)
        self._send_start(worker, job, execution_id, now)
        self._tell_owner(job)
        self._note(
            "job dispatched",
            job_id=job.job_id,
            worker_id=worker.worker_id,
            execution_id=execution_id,
            attempt=job.attempts,
        )

    def _send_start(self, worker: Worker, job: Job, execution_id: bytes, now: float) -> None:
        claim = dataclasses.replace(
            job.claim, remaining_ms=job.remaining_ms(now), attempts=job.attempts, crashes=job.crashes
        )
        start = Start(
            epoch=self.epoch,
            incarnation=worker.incarnation,
            execution_id=execution_id,
            claim=claim,
            parameters=job.parameters,
            body=job.prompt,
        )
        self._send_worker(worker.route, start)

    def _start_refused(self, route: bytes, refuse: Refuse, now: float) -> None:
        for worker in self.workers:
            if isinstance(worker.slot, Offered) and worker.slot.execution_id == refuse.execution_id:
                self._note(
                    "start refused",
                    "warning",
                    job_id=worker.slot.job_id,
                    worker_id=worker.worker_id,
                    reason=refuse.reason.value,
                )
                self._take_back(worker.slot.job_id, worker.slot.execution_id, now)
                worker.slot = Unclear()
                return

    def _take_back(self, job_id: bytes, execution_id: bytes, now: float) -> None:
        """The START was not begun: the job waits again, and the attempt does not count."""
        job = self.jobs.dispatched_as(job_id, execution_id)
        if job is not None:
            job.attempts -= 1
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker did not begin it")
            self._put_back(job, failure, now)

    def _outcome_came(self, outcome: Outcome, now: float) -> None:
        worker = self.workers.of_incarnation(outcome.worker_id, outcome.incarnation)
        if worker is not None and outcome.seq > worker.seq:
            worker.seq, worker.heard_at = outcome.seq, now
            if (
                isinstance(worker.slot, Offered | Running)
                and worker.slot.execution_id == outcome.execution_id
            ):
                worker.slot = Idle(now)
        job = self.jobs.get(outcome.job_id)
        if job is None or job.current_execution != outcome.execution_id:
            self.counters.dropped_outcomes += 1
            self._note("outcome dropped", job_id=outcome.job_id, execution_id=outcome.execution_id)
            return
        job.attempts, job.crashes = max(job.attempts, outcome.attempts), max(job.crashes, outcome.crashes)
        if outcome.failure is None:
            self._deliver(job, outcome, now)
        elif outcome.failure.code in RETRYABLE_FAILURES:
            self._note(
                "attempt failed",
                "warning",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                code=outcome.failure.code.value,
                detail=outcome.failure.detail,
            )
            self._put_back(job, outcome.failure, now)
        else:
            self._fail(job, outcome, now)

    def _deliver(self, job: Job, outcome: Outcome, now: float) -> None:
        if isinstance(job.state, Dispatched):
            self.counters.completed += 1
            self.run_times.observe(job.parameters, now - job.state.since)
            self._note(
                "job completed",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                attempt=job.attempts,
                run_s=round(now - job.state.since, 3),
            )
        job.state = Delivering(outcome.worker_id, outcome.execution_id, now)
        self._pass_on(job, outcome)

    def _fail(self, job: Job, outcome: Outcome, now: float) -> None:
        self.counters.failed += 1
        if outcome.failure is not None:
            self._note(
                "job failed",
                "warning",
                job_id=job.job_id,
                code=outcome.failure.code.value,
                detail=outcome.failure.detail,
                attempts=job.attempts,
            )
        job.state = Failed(outcome, now)
        self._pass_on(job, outcome)

    def _pass_on(self, job: Job, outcome: Outcome) -> None:
        frontend = self.frontends.get(job.owner)
        if frontend is not None:
            self._actions.append(SendToFrontend(route=frontend.route, message=outcome))

    def _deliver_again_if_due(self, job: Job, now: float) -> None:
        """Its frontend still lists a job whose outcome was passed on: say it again, or make it again."""
        match job.state:
            case Failed(outcome=outcome, passed_on_at=passed_on_at) if self._is_due(passed_on_at, now):
                job.state = Failed(outcome, now)
                self._pass_on(job, outcome)
            case Delivering(worker_id=worker_id, execution_id=execution_id, passed_on_at=passed_on_at) if (
                self._is_due(passed_on_at, now)
            ):
                worker = self.workers.registered.get(worker_id)
                if worker is not None and worker.holds(execution_id):
                    job.state = Delivering(worker_id, execution_id, now)
                    self._send_worker(worker.route, self._views.resend(worker, execution_id))
                else:
                    failure = JobFailed(code=FailureCode.WORKER_LOST, detail="the image was lost on its way")
                    self._put_back(job, failure, now)
            case _:
                pass

    def _is_due(self, passed_on_at: float, now: float) -> bool:
        return now - passed_on_at >= self.timing.repeat_after_s

    def _put_back(self, job: Job, failure: JobFailed, now: float) -> None:
        if job.attempts >= MAX_ATTEMPTS:
            self._fail(job, self._own_outcome(job, failure), now)
        else:
            job.state = Returned(now, now + self.timing.retry_wait_s, failure)

    def _own_outcome(self, job: Job, failure: JobFailed) -> Outcome:
        return Outcome(
            worker_id=self.broker_id,
            incarnation=self.epoch,
            seq=0,
            execution_id=self.new_execution_id(),
            job_id=job.job_id,
            attempts=job.attempts,
            crashes=job.crashes,
            failure=failure,
        )

    def _end(self, job: Job, now: float) -> None:
        """Nobody waits for it any more: because it was delivered, or because it was given up."""
        if job.is_active:
            self.counters.cancelled += 1
            self._note("job cancelled", job_id=job.job_id)
        self.jobs.remove(job)
        match job.state:
            case Dispatched(worker_id=worker_id) | Delivering(worker_id=worker_id):
                worker = self.workers.registered.get(worker_id)
                if worker is not None:
                    self._send_view(worker)
            case _:
                pass

    # --- Time ----------------------------------------------------------------------------------

    def _make_round(self, now: float) -> None:
        self._next_round_at = None
        for worker in list(self.workers):
            self._watch(worker, now)
        for frontend in list(self.frontends):
            if now - frontend.heard_at >= self.timing.peer_lost_s:
                self._lose_frontend(frontend, "silent", now)
        for job in list(self.jobs):
            self._watch_job(job, now)
        self.workers.forget_lost(now - self.timing.lost_worker_shown_s)

    def _watch(self, worker: Worker, now: float) -> None:
        silent_s = now - worker.heard_at
        gone = worker.unreachable_since
        if silent_s >= self.timing.peer_lost_s:
            self._lose_worker(worker, f"silent for {silent_s:.1f} s", now)
        elif gone is not None and now - gone >= self.timing.unreachable_grace_s:
            self._lose_worker(worker, "its connection is gone", now)
        elif silent_s >= self.timing.probe_after_s:
            self._send_view(worker)

    def _watch_job(self, job: Job, now: float) -> None:
        if now >= job.deadline + self.timing.heartbeat_interval_s:
            self._end(job, now)  # Its frontend has answered long ago, by its own clock.
        elif isinstance(job.state, Returned) and now >= job.state.give_up_at:
            self._fail(job, self._own_outcome(job, job.state.failure), now)

    def _drain(self, now: float) -> None:
        if not self.draining:
            self.draining = True
            self._note("broker draining", jobs=len(self.jobs))
            for frontend in self.frontends:
                self._send_statuses(frontend)

    def _send_worker(self, route: bytes, message: WorkerView | Start | Refuse) -> None:
        self._actions.append(SendToWorker(route=route, message=message))
