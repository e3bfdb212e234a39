"""What happens to a job from its admission to its end. The states are in `jobs.py`."""

import dataclasses
from typing import Final

from broker.jobs import (
    MAX_ATTEMPTS,
    MAX_CRASHES,
    Delivering,
    Dispatched,
    Failed,
    Job,
    Queued,
    Returned,
    Waiter,
    is_same_key,
)
from broker.state import BrokerState
from broker.workers import Idle, Offered, Running, Worker
from proto.failures import FailureCode
from proto.messages import JobClaim, JobFailed, Outcome, Start, Submit

LONGEST_REPEAT_S: Final = 30.0
"""Between two deliveries of one outcome: each in vain doubles the wait, for its frontend may read slowly."""
_LATER: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="accepted by an earlier broker")
_NOT_BEGUN: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker did not begin it")
_IMAGE_LOST: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="the image was lost on its way")


class JobLife:
    """The only one that changes the state of a job."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state

    # --- The beginning -------------------------------------------------------------------------

    def admit(self, submit: Submit, now: float) -> Job:
        job = self._new_job(submit, now)
        if submit.accepted or job.attempts > 0:
            self.put_back(job, _LATER, now)
            self._adopt_from_all(job, now)
        elif job.claim.idempotency_hash is not None:
            self._adopt_from_all(job, now)
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

    def admit_kept(self, submit: Submit, worker: Worker, execution_id: bytes, now: float) -> Job:
        """A repeat of a call whose image that worker still holds: it costs a transfer and no execution."""
        job = self._new_job(submit, now)
        job.is_counted = True
        job.state = Delivering(worker.worker_id, execution_id, now)
        self._state.ask_for_image(worker, execution_id)
        self._state.note(
            "image given again", job_id=job.job_id, worker_id=worker.worker_id, execution_id=execution_id
        )
        return job

    def _new_job(self, submit: Submit, now: float) -> Job:
        job = Job(
            claim=submit.claim,
            parameters=submit.parameters,
            prompt=submit.body,
            deadline=now + submit.claim.remaining_ms / 1000,
            state=Queued(now),
        )
        job.count(submit.claim)
        self._state.jobs.add(job)
        self._attach(job, submit)
        return job

    def join(self, job: Job, submit: Submit, now: float) -> None:
        """Another call, or the same one again, waits for this job."""
        claim = submit.claim
        job.count(claim)
        if claim.detach and not job.claim.detach and claim.idempotency_hash == job.claim.idempotency_hash:
            job.claim = dataclasses.replace(job.claim, detach=True)
        is_known = claim.job_id in job.waiters
        self._attach(job, submit)
        deadline = now + claim.remaining_ms / 1000
        is_the_one = is_known and len(job.waiters) == 1
        job.deadline = deadline if is_the_one else max(job.deadline, deadline)
        if not is_known and isinstance(job.state, Delivering):
            self._ask_again(job, job.state, 0, now)
        elif not is_known and isinstance(job.state, Failed):
            self._pass_on(job, job.state.outcome)
        elif isinstance(job.state, Dispatched):
            self.renew_claim(self._state.workers.registered[job.state.worker_id], now)

    def _attach(self, job: Job, submit: Submit) -> None:
        waiter = Waiter(frontend=submit.incarnation, submit_seq=submit.seq)
        self._state.jobs.attach(job, submit.claim.job_id, waiter)

    # --- Executions ----------------------------------------------------------------------------

    def adopt(self, worker: Worker, now: float) -> None:
        """Give waiting jobs what this worker runs or holds for them: it, or the broker, was away."""
        running = worker.running
        if running is not None and not running.stopping:
            waiting = self._state.jobs.answered_by(running.claim)
            is_its_own = waiting is not None and waiting.job_id == running.claim.job_id
            if waiting is None or not waiting.is_waiting:
                pass
            elif is_its_own or self._state.may_be_joined(running):
                self._adopt(waiting, worker, running.execution_id, running.claim, now)
        for outcome in worker.report.held:
            waiting = self._state.jobs.answered_by(outcome.claim)
            if waiting is None or not waiting.is_waiting:
                continue
            if outcome.failure is None:
                self._adopt(waiting, worker, outcome.execution_id, outcome.claim, now)
            elif outcome.claim.job_id == waiting.job_id:
                waiting.count(outcome.claim)

    def _adopt(self, job: Job, worker: Worker, execution_id: bytes, claim: JobClaim, now: float) -> None:
        if claim.job_id == job.job_id:
            job.count(claim)
        job.attempts = max(job.attempts, 1)  # For a repeat, what came before belongs to another job.
        if claim.detach and is_same_key(claim, job.claim):  # by a call that has left
            job.claim = dataclasses.replace(job.claim, detach=True)
            job.deadline = max(job.deadline, now + claim.remaining_ms / 1000)
        self._state.own(execution_id)
        job.last_worker_id = worker.worker_id
        job.state = Dispatched(worker.worker_id, execution_id, now)
        self.tell_waiters(job)
        self._state.note(
            "execution adopted", job_id=job.job_id, worker_id=worker.worker_id, execution_id=execution_id
        )

    def _adopt_from_all(self, job: Job, now: float) -> None:
        """The same for a job that has just come, and what all workers last reported."""
        for worker in self._state.workers:
            if job.is_waiting and worker.unreachable_since is None:
                self.adopt(worker, now)
        if isinstance(job.state, Dispatched):
            self._state.send_worker_view(self._state.workers.registered[job.state.worker_id])

    def dispatch(self, now: float) -> None:
        """Give waiting jobs to idle workers: returned jobs first, the longest idle worker first."""
        if self._state.is_rebuilding:
            return
        self._fail_exhausted(now)
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

    def _fail_exhausted(self, now: float) -> None:
        for job in self._state.jobs.returned():
            failure = job.last_failure or _LATER
            if job.crashes >= MAX_CRASHES:
                detail = f"{job.crashes} engine processes died on it, the last one: {failure.detail}"
                failure = JobFailed(code=FailureCode.POISON_JOB, detail=detail[:500])
                self.fail(job, self._own_outcome(job, failure), now)
            elif job.attempts >= MAX_ATTEMPTS:
                self.fail(job, self._own_outcome(job, failure), now)

    def _start(self, job: Job, worker: Worker, now: float) -> None:
        execution_id = self._state.new_execution_id()
        self._state.own(execution_id)
        job.attempts += 1
        job.last_worker_id = worker.worker_id
        job.state = Dispatched(worker.worker_id, execution_id, now)
        worker.slot = Offered(job.job_id, execution_id, now)
        self.send_start(worker, job, execution_id, now)
        self.tell_waiters(job)
        self._state.note(
            "job dispatched",
            job_id=job.job_id,
            worker_id=worker.worker_id,
            execution_id=execution_id,
            attempt=job.attempts,
        )

    def send_start(self, worker: Worker, job: Job, execution_id: bytes, now: float) -> None:
        self._send_start(worker, job, execution_id, job.job_id, now)

    def _send_start(self, worker: Worker, job: Job, execution_id: bytes, job_id: bytes, now: float) -> None:
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
            body=job.prompt,
        )
        self._state.send_worker(worker.route, start)

    def renew_claim(self, worker: Worker, now: float) -> None:
        """Who joined later may wait longer, or have detached the job: the worker is told until it says so."""
        running = worker.running
        job = None if running is None else self._state.jobs.wanting(running.execution_id)
        if running is None or job is None:
            return
        slack_ms = 2000 * self._state.timing.heartbeat_interval_s
        is_short = running.claim.remaining_ms + slack_ms < job.remaining_ms(now)
        if is_short or (job.claim.detach and not running.claim.detach):
            self._send_start(worker, job, running.execution_id, running.claim.job_id, now)

    def take_back(self, execution_id: bytes, now: float) -> None:
        """The START was not begun: the job waits again, and the attempt does not count."""
        job = self._state.jobs.wanting(execution_id)
        if job is not None and isinstance(job.state, Dispatched):
            job.attempts -= 1
            self.put_back(job, job.last_failure or _NOT_BEGUN, now)

    def put_back(self, job: Job, failure: JobFailed, now: float) -> None:
        """It waits to run again, unless the next dispatch finds that it has been tried often enough."""
        job.last_failure = failure
        waits_from = max(now, self._state.rebuilt_at)
        job.state = Returned(now, waits_from + self._state.timing.retry_wait_s, failure)

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

    # --- Outcomes ------------------------------------------------------------------------------

    def deliver(self, job: Job, outcome: Outcome, now: float) -> None:
        repeats = 0
        if isinstance(job.state, Dispatched):
            self._count_completion(job, outcome, now)
            self._state.note(
                "job completed",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                attempt=job.attempts,
                run_s=round(now - job.state.since, 3),
            )
        elif isinstance(job.state, Delivering):
            repeats = job.state.repeats
        job.state = Delivering(outcome.worker_id, outcome.execution_id, now, repeats)
        self._pass_on(job, outcome)
        self._end_if_unwaited(job)

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
        self._end_if_unwaited(job)

    def _end_if_unwaited(self, job: Job) -> None:
        if not job.waiters:
            self.end(job)

    def _count_completion(self, job: Job, outcome: Outcome, now: float) -> None:
        """Once for a job, even if its image was lost on its way and is drawn again."""
        if not job.is_counted:
            job.is_counted = True
            self._state.counters.completed += 1
        if outcome.image is not None:
            self._state.run_times.observe(job.parameters, outcome.image.inference_time_s, now)

    def _pass_on(self, job: Job, outcome: Outcome) -> None:
        """To everyone who waits, under the name of its own call."""
        for waiter_id, waiter in job.waiters.items():
            frontend = self._state.frontends.get(waiter.frontend)
            if frontend is not None:
                self._state.send_frontend(frontend.route, dataclasses.replace(outcome, job_id=waiter_id))

    def deliver_again_if_due(self, job: Job, now: float) -> None:
        """A frontend still lists a job whose outcome was passed on: say it again, or make it again."""
        match job.state:
            case Failed(outcome=outcome, passed_on_at=passed_on_at) if self._is_due(passed_on_at, 0, now):
                job.state = Failed(outcome, now)
                self._pass_on(job, outcome)
            case Delivering(passed_on_at=passed_on_at, repeats=repeats) as delivering if self._is_due(
                passed_on_at, repeats, now
            ):
                self._ask_again(job, delivering, repeats + 1, now)
            case _:
                pass

    def _ask_again(self, job: Job, delivering: Delivering, repeats: int, now: float) -> None:
        worker = self._state.workers.registered.get(delivering.worker_id)
        if worker is not None and worker.holds(delivering.execution_id):
            job.state = dataclasses.replace(delivering, passed_on_at=now, repeats=repeats)
            self._state.ask_for_image(worker, delivering.execution_id)
        elif now - delivering.passed_on_at >= self._state.timing.repeat_after_s:
            self.put_back(job, _IMAGE_LOST, now)

    def _is_due(self, passed_on_at: float, repeats: int, now: float) -> bool:
        wait_s = min(self._state.timing.repeat_after_s * 2.0 ** min(repeats, 10), LONGEST_REPEAT_S)
        return now - passed_on_at >= wait_s

    # --- The end -------------------------------------------------------------------------------

    def leave(self, job: Job, waiter_id: bytes) -> None:
        """This call does not wait any more: it was answered, or given up."""
        self._state.jobs.detach(job, waiter_id)
        if not job.waiters and not self._goes_on_detached(job):
            self.end(job)

    def _goes_on_detached(self, job: Job) -> bool:
        return job.is_active and job.claim.detach and job.claim.idempotency_hash is not None

    def orphan(self, job: Job, waiter_id: bytes, now: float) -> None:
        """Its frontend is lost. A client with an idempotency key may come back through another."""
        self._state.jobs.detach(job, waiter_id)
        if job.waiters:
            return
        if job.is_active and job.claim.idempotency_hash is not None:
            job.orphaned_at = now
        else:
            self.end(job)

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

    def tell_waiters(self, job: Job) -> None:
        for waiter_id in job.waiters:
            self.tell_waiter(job, waiter_id)

    def tell_waiter(self, job: Job, waiter_id: bytes) -> None:
        frontend = self._state.frontends.get(job.waiters[waiter_id].frontend)
        if frontend is not None:
            self._state.send_statuses(frontend, job.status(waiter_id))

    def watch(self, job: Job, now: float) -> None:
        timing = self._state.timing
        if now >= job.deadline + timing.heartbeat_interval_s:
            self.end(job)  # Its frontends have answered long ago, by their own clocks.
        elif self._is_forsaken(job, now):
            self.end(job)
        elif isinstance(job.state, Returned) and now >= job.state.give_up_at and not self._any_stopping(now):
            self.fail(job, self._own_outcome(job, job.state.failure), now)

    def _is_forsaken(self, job: Job, now: float) -> bool:
        if job.orphaned_at is None or self._goes_on_detached(job):
            return False
        return now - job.orphaned_at >= self._state.timing.orphan_grace_s

    def _any_stopping(self, now: float) -> bool:
        """Whether a worker is busy with something unwanted: it will be free at its next step."""
        return any(
            isinstance(worker.slot, Running)
            and worker.is_serving(now, self._state.timing.probe_after_s)
            and self._state.jobs.wanting(worker.slot.execution_id) is None
            and not self._state.runs_unowned(worker)
            for worker in self._state.workers
        )
