"""What workers say, and what it means for them and their jobs."""

import dataclasses
from enum import Enum, auto
from typing import Final, assert_never

from broker.job_life import JobLife
from broker.jobs import Dispatched, Job
from broker.state import BrokerState
from broker.workers import MAX_WORKERS, Idle, Offered, Running, Slot, Unclear, Worker, born_at
from proto.failures import ENGINE_REPLACED, RETRYABLE_FAILURES, FailureCode, RefusalReason
from proto.messages import HeldOutcome, JobFailed, Leave, Outcome, Refuse, ToBrokerFromWorker, WorkerReport

_STOPPED_IN_VAIN: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="stopped for another call")
STOPPED: Final = frozenset({FailureCode.CANCELLED, FailureCode.DEADLINE_EXCEEDED})


class _Verdict(Enum):
    """On a report of a process whose `worker_id` belongs to a younger one, as it seems, or that has left."""

    ENDS = auto()
    WAITS = auto()
    """It is not heard yet, as the younger one may be gone."""
    RETURNS = auto()
    """It takes the name back."""


class WorkerSide:
    """The only one that changes what is believed of a worker; only `JobLife.dispatch` fills its slot."""

    def __init__(self, state: BrokerState, job_life: JobLife) -> None:
        self._state = state
        self._job_life = job_life
        self._adoption = job_life.adoption

    def receive(self, route: bytes, message: ToBrokerFromWorker, now: float) -> None:
        match message:
            case WorkerReport():
                self._worker_reported(route, message, now)
            case Outcome():
                self._outcome_came(route, message, now)
            case Refuse():
                self._start_refused(message, now)
            case Leave():
                self._worker_left(message, now)
            case _:
                assert_never(message)

    def _worker_reported(self, route: bytes, report: WorkerReport, now: float) -> None:
        if report.incarnation in self._state.workers.fenced or self._is_elder(report, now):
            match self._verdict_on_elder(report, now):
                case _Verdict.ENDS:
                    self._supersede(route, report)
                    return
                case _Verdict.WAITS:
                    return
                case _Verdict.RETURNS:
                    self._state.workers.fenced.pop(report.incarnation, None)
        worker = self._state.workers.of_incarnation(report.worker_id, report.incarnation)
        if worker is None and self._is_full(report):
            self._state.shed("workers")
            detail = f"{MAX_WORKERS} workers are registered already"
            self._state.send_worker(route, Refuse(reason=RefusalReason.BROKER_FULL, detail=detail))
            return
        if worker is None:
            worker = self._register(route, report, now)
        elif report.seq <= worker.seq:
            return
        self._state.workers.take(worker, report, route, now)
        self._state.workers.set_slot(worker, self._slot_after_report(worker, now))
        self._put_back_missing(worker, now)
        self._adoption.reported(worker, now)
        self._adoption.renew_claim(worker, now)
        self._leave_to_others(worker)
        self._state.send_worker_view(worker)

    def _leave_to_others(self, worker: Worker) -> None:
        """What only another broker still wants may have calls there, or be detached."""
        running = () if worker.running is None else (worker.running,)
        for each in (*running, *worker.held.values()):
            if each.wanted_elsewhere and self._state.jobs.wanting(each.execution_id) is None:
                self._state.disown(each.execution_id)

    def _is_full(self, report: WorkerReport) -> bool:
        workers = self._state.workers
        return len(workers) >= MAX_WORKERS and report.worker_id not in workers.registered

    def _is_elder(self, report: WorkerReport, now: float) -> bool:
        """Whether a younger process has the name: the elder was replaced, however late it speaks."""
        present = self._state.workers.registered.get(report.worker_id)
        if present is None or present.incarnation == report.incarnation:
            return False
        return born_at(report, now) < present.born_at

    def _verdict_on_elder(self, report: WorkerReport, now: float) -> _Verdict:
        """Whatever has lain in a socket, perhaps of a process that is gone, looks as young as it came late.

        So whoever is to be believed must have reported for a heartbeat: the younger one, before the elder is
        told to end; or the elder, since the younger one spoke last.
        """
        workers, timing = self._state.workers, self._state.timing
        present, elder = workers.registered.get(report.worker_id), workers.fence(report.incarnation)
        if elder.has_left:
            return _Verdict.ENDS
        if present is None:
            return _Verdict.RETURNS
        if present.reported_for_s >= timing.heartbeat_interval_s:
            return _Verdict.ENDS
        if elder.spoke_at is None or elder.spoke_at <= present.heard_at:
            elder.spoke_at = now
        is_silent = self._state.silence_at - present.heard_at >= timing.probe_after_s
        is_believed = now - elder.spoke_at >= timing.heartbeat_interval_s
        return _Verdict.RETURNS if is_silent and is_believed else _Verdict.WAITS

    def _supersede(self, route: bytes, report: WorkerReport) -> None:
        detail = f"another worker has registered as {report.worker_id!r}, or this one had left"
        self._state.send_worker(route, Refuse(reason=RefusalReason.SUPERSEDED, detail=detail))

    def _register(self, route: bytes, report: WorkerReport, now: float) -> Worker:
        earlier = self._state.workers.registered.get(report.worker_id)
        if earlier is not None:
            self._state.workers.fence(earlier.incarnation)
            self._lose_worker(earlier, "superseded by a new process", now)
        worker = Worker(report=report, route=route, heard_at=now, seq=report.seq, slot=Idle(now))
        self._state.workers.add(worker)
        self._state.note(
            "worker registered", worker_id=report.worker_id, host=report.host, phase=report.phase.value
        )
        return worker

    def _slot_after_report(self, worker: Worker, now: float) -> Slot:
        """What the worker's own words make of what was believed of it."""
        running, before = worker.report.running, worker.slot
        if self._has_crossed_start(worker, now):
            return before
        if running is not None:
            return Running(running.claim.job_id, running.execution_id)
        match before:
            case Idle():
                return before
            case Offered(execution_id=execution_id) if not worker.holds(execution_id):
                return self._offered_again(worker, before, now)
            case Offered() | Running() | Unclear():
                return Idle(now)
            case _:
                assert_never(before)

    def _has_crossed_start(self, worker: Worker, now: float) -> bool:
        """Whether the report may be older than the START that was sent last, of which it knows nothing.

        What it shows instead was begun by another broker. It may be over when the START arrives; if not, that
        is refused.
        """
        slot, running = worker.slot, worker.report.running
        if not isinstance(slot, Offered) or now - slot.sent_at >= self._state.timing.repeat_after_s:
            return False
        runs_it = running is not None and running.execution_id == slot.execution_id
        return not runs_it and not worker.holds(slot.execution_id)

    def _offered_again(self, worker: Worker, offered: Offered, now: float) -> Slot:
        """The START was lost, or will never be of use."""
        job = self._state.jobs.wanting(offered.execution_id)
        if job is None or not isinstance(job.state, Dispatched):
            return Idle(now)
        self._job_life.send_start(worker, job, offered.execution_id, now)
        return Offered(offered.job_id, offered.execution_id, now)

    def _put_back_missing(self, worker: Worker, now: float) -> None:
        """Jobs that are believed to be on this worker, and of which it knows nothing.

        Their attempts count: nobody knows that they were not begun.
        """
        slot = worker.slot
        for job in self._state.jobs.on_worker(worker.worker_id):
            execution_id = job.current_execution
            in_slot = isinstance(slot, Offered | Running) and slot.execution_id == execution_id
            if execution_id is None or in_slot or worker.holds(execution_id):
                continue
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker knows nothing of it")
            self._job_life.put_back(job, failure, now)

    def _start_refused(self, refuse: Refuse, now: float) -> None:
        for worker in self._state.workers:
            if isinstance(worker.slot, Offered) and worker.slot.execution_id == refuse.execution_id:
                self._state.note(
                    "start refused",
                    "warning",
                    job_id=worker.slot.job_id,
                    worker_id=worker.worker_id,
                    reason=refuse.reason.value,
                )
                self._job_life.take_back(worker.slot.execution_id, now)
                self._state.workers.set_slot(worker, self._slot_after_refusal(worker))
                self._take_what_runs_instead(worker, now)
                return

    @staticmethod
    def _slot_after_refusal(worker: Worker) -> Slot:
        """What it runs instead, if a report that crossed the START has said so."""
        running = worker.report.running
        if running is None or worker.holds(running.execution_id):  # Nothing, or what has ended since.
            return Unclear()
        return Running(running.claim.job_id, running.execution_id)

    def _take_what_runs_instead(self, worker: Worker, now: float) -> None:
        """Its job may have come since: it takes nothing over from a slot that is thought to be another's."""
        if worker.unreachable_since is not None:
            return
        self._adoption.reported(worker, now)
        if self._state.jobs.on_worker(worker.worker_id):
            self._state.send_worker_view(worker)

    def _outcome_came(self, route: bytes, outcome: Outcome, now: float) -> None:
        worker = self._state.workers.of_incarnation(outcome.worker_id, outcome.incarnation)
        if worker is not None and outcome.seq > worker.seq:
            self._state.workers.heard(worker, route, outcome.seq, now)
            slot = worker.slot
            if isinstance(slot, Offered | Running) and slot.execution_id == outcome.execution_id:
                engine_gone = outcome.failure is not None and outcome.failure.code in ENGINE_REPLACED
                self._state.workers.set_slot(worker, Unclear() if engine_gone else Idle(now))
        if worker is not None:
            self._state.workers.settle(worker, outcome)
        job = self._state.jobs.wanting(outcome.execution_id)
        if job is None:
            self._count_what_is_not_wanted(outcome)
            self._state.note("outcome dropped", job_id=outcome.job_id, execution_id=outcome.execution_id)
            return
        self._state.jobs.count(job, outcome)
        if outcome.failure is None:
            if worker is not None:
                held = HeldOutcome(
                    execution_id=outcome.execution_id,
                    claim=job.claim,
                    failure=None,
                    size_bytes=len(outcome.body),
                )
                self._state.workers.learn(worker, held)
            self._job_life.deliver(job, outcome, now)
        elif outcome.failure.code in RETRYABLE_FAILURES:
            self._state.note(
                "attempt failed",
                "warning",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                code=outcome.failure.code.value,
                detail=outcome.failure.detail,
            )
            self._job_life.put_back(job, outcome.failure, now)
        elif self._was_stopped_in_vain(job, outcome.failure):
            self._job_life.put_back(job, job.last_failure or _STOPPED_IN_VAIN, now)
        else:
            self._job_life.fail(job, self._without_cancel(outcome), now)

    def _count_what_is_not_wanted(self, outcome: Outcome) -> None:
        if outcome.image is not None:
            self._state.shed("fenced_images")
        job = self._state.jobs.get(outcome.job_id)
        if job is not None:
            self._state.jobs.count(job, outcome)

    @staticmethod
    def _without_cancel(outcome: Outcome) -> Outcome:
        """Nobody who waits has cancelled it: what was stopped for others has used up the time of those."""
        if outcome.failure is None or outcome.failure.code is not FailureCode.CANCELLED:
            return outcome
        over = JobFailed(code=FailureCode.DEADLINE_EXCEEDED, detail=outcome.failure.detail)
        return dataclasses.replace(outcome, failure=over)

    def _was_stopped_in_vain(self, job: Job, failure: JobFailed) -> bool:
        """It was stopped for one call, and another has joined since."""
        time_left_s = job.deadline - self._state.now
        return failure.code in STOPPED and time_left_s > self._state.timing.heartbeat_interval_s

    def _worker_left(self, leave: Leave, now: float) -> None:
        worker = self._state.workers.by_incarnation(leave.incarnation)
        if worker is not None:
            self._give_up_worker(worker, f"left: {leave.reason}", now)
            self._state.workers.fence(worker.incarnation, has_left=True)
            self._state.workers.remove(worker)
            self._state.note("worker left", worker_id=worker.worker_id, reason=leave.reason)

    def unreachable(self, route: bytes, now: float) -> None:
        worker = self._state.workers.by_route(route)
        if worker is not None and worker.unreachable_since is None:
            self._state.workers.cannot_be_reached(worker, now)

    def _lose_worker(self, worker: Worker, reason: str, now: float) -> None:
        self._give_up_worker(worker, reason, now)
        self._state.workers.lose(worker, now)
        self._state.note("worker lost", "warning", worker_id=worker.worker_id, reason=reason)

    def _give_up_worker(self, worker: Worker, reason: str, now: float) -> None:
        for job in self._state.jobs.on_worker(worker.worker_id):
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail=f"worker {worker.worker_id}: {reason}")
            self._job_life.put_back(job, failure, now)

    def watch(self, now: float) -> None:
        """Probe the silent, give up the lost, forget those that were lost long ago."""
        for worker in list(self._state.workers):
            self._watch(worker, self._state.silence_at, now)
        self._state.workers.forget_lost(now - self._state.timing.lost_worker_shown_s)

    def _watch(self, worker: Worker, silence_at: float, now: float) -> None:
        silent_s = silence_at - worker.heard_at
        gone = worker.unreachable_since
        if silent_s >= self._state.timing.peer_lost_s:
            self._lose_worker(worker, f"silent for {silent_s:.1f} s", now)
        elif gone is not None and silence_at - gone >= self._state.timing.unreachable_grace_s:
            self._lose_worker(worker, "its connection is gone", now)
        elif silent_s >= self._state.timing.probe_after_s:
            self._state.send_worker_view(worker)
