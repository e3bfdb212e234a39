"""What happens to a job from its admission to its end. The states are in `jobs.py`."""

import dataclasses

from broker.jobs import (
    MAX_ATTEMPTS,
    Delivering,
    Dispatched,
    Failed,
    Job,
    Queued,
    Returned,
)
from broker.state import BrokerState
from broker.workers import Idle, Offered, Running, Worker
from proto.failures import FailureCode
from proto.messages import JobFailed, Outcome, Start, Submit


class JobLife:
    """The only one that changes the state of a job."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state

    def admit(self, submit: Submit, now: float) -> Job:
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
        self._state.jobs.add(job)
        if submit.accepted or job.attempts >= MAX_ATTEMPTS:
            failure = JobFailed(code=FailureCode.WORKER_LOST, detail="accepted by an earlier broker")
            self.put_back(job, failure, now)
        self._state.note(
            "job admitted",
            job_id=job.job_id,
            key=job.claim.key_fingerprint,
            width=job.parameters.width,
            height=job.parameters.height,
            steps=job.parameters.steps,
            again=submit.accepted,
        )
        return job

    def dispatch(self, now: float) -> None:
        """Give waiting jobs to idle workers: returned jobs first, the longest idle worker first."""
        waiting = self._state.jobs.waiting()
        if not waiting:
            return
        idle = [
            (worker.slot.since, worker)
            for worker in self._state.workers
            if isinstance(worker.slot, Idle) and worker.is_serving(now, self._state.timing.probe_after_s)
        ]
        for job in waiting:
            if not idle:
                return
            choice = min(idle, key=lambda entry: (entry[1].worker_id == job.last_worker_id, entry[0]))
            idle.remove(choice)
            self._start(job, choice[1], now)

    def _start(self, job: Job, worker: Worker, now: float) -> None:
        execution_id = self._state.new_execution_id()
        job.attempts += 1
        job.last_worker_id = worker.worker_id
        job.state = Dispatched(worker.worker_id, execution_id, now)
        worker.slot = Offered(job.job_id, execution_id, now)
        self.send_start(worker, job, execution_id, now)
        self.tell_owner(job)
        self._state.note(
            "job dispatched",
            job_id=job.job_id,
            worker_id=worker.worker_id,
            execution_id=execution_id,
            attempt=job.attempts,
        )

    def send_start(self, worker: Worker, job: Job, execution_id: bytes, now: float) -> None:
        claim = dataclasses.replace(
            job.claim, remaining_ms=job.remaining_ms(now), attempts=job.attempts, crashes=job.crashes
        )
        start = Start(
            epoch=self._state.epoch,
            incarnation=worker.incarnation,
            execution_id=execution_id,
            claim=claim,
            parameters=job.parameters,
            body=job.prompt,
        )
        self._state.send_worker(worker.route, start)

    def take_back(self, job_id: bytes, execution_id: bytes, now: float) -> None:
        """The START was not begun: the job waits again, and the attempt does not count."""
        job = self._state.jobs.dispatched_as(job_id, execution_id)
        if job is not None:
            job.attempts -= 1
            not_begun = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker did not begin it")
            self.put_back(job, job.last_failure or not_begun, now)

    def put_back(self, job: Job, failure: JobFailed, now: float) -> None:
        job.last_failure = failure
        if job.attempts >= MAX_ATTEMPTS:
            self.fail(job, self._own_outcome(job, failure), now)
        else:
            job.state = Returned(now, now + self._state.timing.retry_wait_s, failure)

    def _own_outcome(self, job: Job, failure: JobFailed) -> Outcome:
        return Outcome(
            worker_id=self._state.broker_id,
            incarnation=self._state.epoch,
            seq=0,
            execution_id=self._state.new_execution_id(),
            job_id=job.job_id,
            attempts=job.attempts,
            crashes=job.crashes,
            failure=failure,
        )

    def deliver(self, job: Job, outcome: Outcome, now: float) -> None:
        if isinstance(job.state, Dispatched):
            self._count_completion(job, outcome, now)
            self._state.note(
                "job completed",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                attempt=job.attempts,
                run_s=round(now - job.state.since, 3),
            )
        job.state = Delivering(outcome.worker_id, outcome.execution_id, now)
        self._pass_on(job, outcome)

    def fail(self, job: Job, outcome: Outcome, now: float) -> None:
        self._state.counters.failed += 1
        if outcome.failure is not None:
            self._state.note(
                "job failed",
                "warning",
                job_id=job.job_id,
                code=outcome.failure.code.value,
                detail=outcome.failure.detail,
                attempts=job.attempts,
            )
        job.state = Failed(outcome, now)
        self._pass_on(job, outcome)

    def _count_completion(self, job: Job, outcome: Outcome, now: float) -> None:
        """Once for a job, even if its image was lost on its way and is drawn again."""
        if not job.is_counted:
            job.is_counted = True
            self._state.counters.completed += 1
        if outcome.image is not None:
            self._state.run_times.observe(job.parameters, outcome.image.inference_time_s, now)

    def _pass_on(self, job: Job, outcome: Outcome) -> None:
        frontend = self._state.frontends.get(job.owner)
        if frontend is not None:
            self._state.send_frontend(frontend.route, outcome)

    def deliver_again_if_due(self, job: Job, now: float) -> None:
        """Its frontend still lists a job whose outcome was passed on: say it again, or make it again."""
        match job.state:
            case Failed(outcome=outcome, passed_on_at=passed_on_at) if self._is_due(passed_on_at, now):
                job.state = Failed(outcome, now)
                self._pass_on(job, outcome)
            case Delivering(worker_id=worker_id, execution_id=execution_id, passed_on_at=passed_on_at) if (
                self._is_due(passed_on_at, now)
            ):
                worker = self._state.workers.registered.get(worker_id)
                if worker is not None and worker.holds(execution_id):
                    job.state = Delivering(worker_id, execution_id, now)
                    self._state.send_worker(worker.route, self._state.views.resend(worker, execution_id))
                else:
                    failure = JobFailed(code=FailureCode.WORKER_LOST, detail="the image was lost on its way")
                    self.put_back(job, failure, now)
            case _:
                pass

    def _is_due(self, passed_on_at: float, now: float) -> bool:
        return now - passed_on_at >= self._state.timing.repeat_after_s

    def end(self, job: Job) -> None:
        """Nobody waits for it any more: because it was delivered, or because it was given up."""
        if job.is_active and not job.is_counted:
            self._count_end_without_outcome(job)
        self._state.jobs.remove(job)
        match job.state:
            case Dispatched(worker_id=worker_id) | Delivering(worker_id=worker_id):
                worker = self._state.workers.registered.get(worker_id)
                if worker is not None:
                    self._state.send_worker_view(worker)
            case _:
                pass

    def _count_end_without_outcome(self, job: Job) -> None:
        if self._state.now >= job.deadline:
            self._state.counters.failed += 1
            self._state.note("job out of time", job_id=job.job_id)
        else:
            self._state.counters.cancelled += 1
            self._state.note("job cancelled", job_id=job.job_id)

    def tell_owner(self, job: Job) -> None:
        frontend = self._state.frontends.get(job.owner)
        if frontend is not None:
            self._state.send_statuses(frontend, job.status())

    def watch(self, job: Job, now: float) -> None:
        if now >= job.deadline + self._state.timing.heartbeat_interval_s:
            self.end(job)  # Its frontend has answered long ago, by its own clock.
        elif isinstance(job.state, Returned) and now >= job.state.give_up_at and not self._any_stopping(now):
            self.fail(job, self._own_outcome(job, job.state.failure), now)

    def _any_stopping(self, now: float) -> bool:
        """Whether a worker is busy with something unwanted: it will be free at its next step."""
        return any(
            isinstance(worker.slot, Running)
            and worker.is_serving(now, self._state.timing.probe_after_s)
            and not self._state.jobs.wants(worker.slot.job_id, worker.slot.execution_id)
            for worker in self._state.workers
        )
