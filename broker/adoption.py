"""How a job that waits takes over an execution that a worker reports (PROTOCOL.md §5.9)."""

import dataclasses

from broker.jobs import Dispatched, Job, is_same_call, is_same_key
from broker.state import BrokerState
from broker.workers import Worker
from proto.messages import JobClaim, RunningExecution, Start


class Adoption:
    """Of what runs or is held for an earlier broker, or since before the worker was lost."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state

    def reported(self, worker: Worker, now: float) -> None:
        """Give the jobs that wait what this worker has for them."""
        for job in self._state.jobs.waiting_for(worker.names):
            self._look(job, worker, now)

    def look_everywhere(self, job: Job, known: bytes | None, now: float) -> None:
        """The same for a job that has just come, and what all workers last reported.

        Of several the one is taken that the frontend has heard of, `known`.
        """
        found = self._state.workers.having(job.claim)
        for worker in sorted(found, key=lambda worker: not worker.has(known)):
            if job.is_waiting and worker.unreachable_since is None:
                self._look(job, worker, now)
        if isinstance(job.state, Dispatched):
            self._state.send_worker_view(self._state.workers.registered[job.state.worker_id])

    def _look(self, job: Job, worker: Worker, now: float) -> None:
        running = worker.running
        if running is not None and self._may_take(job, worker, running):
            self._adopt(job, worker, running.execution_id, running.claim, now)
            return
        for outcome in worker.held_for(job.claim):
            if not is_same_call(job.claim, outcome.claim):
                continue
            if outcome.failure is None:
                self._adopt(job, worker, outcome.execution_id, outcome.claim, now)
                return
            if outcome.claim.job_id == job.job_id:
                self._state.jobs.count(job, outcome.claim)

    def _may_take(self, job: Job, worker: Worker, running: RunningExecution) -> bool:
        if running.stopping or not is_same_call(job.claim, running.claim):
            return False
        is_its_own = running.claim.job_id == job.job_id or running.execution_id in job.executions
        return is_its_own or self._state.may_be_joined(worker, running)

    def _adopt(self, job: Job, worker: Worker, execution_id: bytes, claim: JobClaim, now: float) -> None:
        if claim.job_id == job.job_id:
            self._state.jobs.count(job, claim)
        job.attempts = max(job.attempts, 1)  # For a repeat, what came before belongs to another job.
        self._take_over_detach(job, claim, now)
        self._state.own(job, execution_id)
        job.last_worker_id = worker.worker_id
        self._state.jobs.change(job, Dispatched(worker.worker_id, execution_id, now))
        self._state.tell_waiters(job)
        self._state.note(
            "execution adopted", job_id=job.job_id, worker_id=worker.worker_id, execution_id=execution_id
        )

    @staticmethod
    def _take_over_detach(job: Job, claim: JobClaim, now: float) -> None:
        """By a call that has left, or that waits at another broker."""
        if claim.detach and is_same_key(claim, job.claim):
            job.claim = dataclasses.replace(job.claim, detach=True)
            job.deadline = max(job.deadline, now + claim.remaining_ms / 1000)

    def renew_claim(self, worker: Worker, now: float) -> None:
        """Who joined later may wait longer, or have detached the job: the worker is told until it says so."""
        running = worker.running
        job = None if running is None else self._state.jobs.wanting(running.execution_id)
        if running is None or job is None or running.stopping:
            return
        if not job.claim.detach:
            self._take_over_detach(job, running.claim, now)
        if worker.renewed_after == worker.report.seq:
            return
        slack_ms = 2000 * self._state.timing.heartbeat_interval_s
        is_short = running.claim.remaining_ms + slack_ms < job.remaining_ms(now)
        if is_short or (job.claim.detach and not running.claim.detach):
            worker.renewed_after = worker.report.seq
            self.send_start(worker, job, running.execution_id, running.claim.job_id, now)

    def send_start(self, worker: Worker, job: Job, execution_id: bytes, job_id: bytes, now: float) -> None:
        """`job_id` is the one that this worker knows, or is to know, the execution's job by."""
        claim = dataclasses.replace(
            job.claim,
            job_id=job_id,
            remaining_ms=job.remaining_ms(now),
            attempts=job.attempts,
            crashes=job.crashes,
        )
        start = Start(
            epoch=self._state.epoch,
            incarnation=worker.incarnation,
            execution_id=execution_id,
            claim=claim,
            parameters=job.parameters,
            trace=job.trace,
            body=job.prompt,
        )
        self._state.send_worker(worker.route, start)
