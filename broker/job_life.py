"""What happens to a job from its admission to its end. The states are in `jobs.py`."""

import dataclasses
from typing import Final

from broker.adoption import Adoption
from broker.jobs import (
    MAX_CRASHES,
    Delivering,
    Dispatched,
    Failed,
    Job,
    Queued,
    Returned,
    Waiter,
)
from broker.state import BrokerState
from broker.workers import Offered, Worker
from proto.failures import FailureCode
from proto.messages import JobFailed, Outcome, Submit

LONGEST_REPEAT_S: Final = 30.0
"""Between two deliveries of one outcome: each in vain doubles the wait, for its frontend may read slowly."""
_LATER: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="accepted by an earlier broker")
_NOT_BEGUN: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="the worker did not begin it")
_IMAGE_LOST: Final = JobFailed(code=FailureCode.WORKER_LOST, detail="the image was lost on its way")


class JobLife:
    """With its `Adoption` the only one that brings a job from one state to another."""

    def __init__(self, state: BrokerState) -> None:
        self._state = state
        self.adoption = Adoption(state)

    # --- The beginning -------------------------------------------------------------------------

    def admit(self, submit: Submit, now: float, *, has_begun: bool) -> Job:
        """`has_begun`: an earlier broker had taken it, so that some worker may run or hold it."""
        job = self._new_job(submit, now)
        if submit.accepted or job.attempts > 0:
            self.put_back(job, _LATER, now)
        if has_begun or job.claim.idempotency_hash is not None:
            self.adoption.look_everywhere(job, submit.execution_id, now)
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
        self._state.jobs.change(job, Delivering(worker.worker_id, execution_id, now))
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
            trace=submit.trace,
        )
        job.count(submit.claim)
        self._state.jobs.add(job)
        self._attach(job, submit)
        return job

    def join(self, job: Job, submit: Submit, now: float) -> None:
        """Another call, or the same one again, waits for this job."""
        claim = submit.claim
        self._state.jobs.count(job, claim)
        if claim.detach and not job.claim.detach and claim.idempotency_hash == job.claim.idempotency_hash:
            job.claim = dataclasses.replace(job.claim, detach=True)
        is_known = claim.job_id in job.waiters
        self._attach(job, submit)
        deadline = now + claim.remaining_ms / 1000
        # What was promised to a call that has left stays.
        is_the_one = is_known and len(job.waiters) == 1 and not job.claim.detach
        job.deadline = deadline if is_the_one else max(job.deadline, deadline)
        match job.state:
            case Delivering(asked_at=None) as delivering:
                self._ask_again(job, delivering, now)
            case Failed(outcome=outcome):
                self._pass_on(job, outcome, now)
            case Dispatched(worker_id=worker_id):
                self.adoption.renew_claim(self._state.workers.registered[worker_id], now)
            case _:
                pass

    def _attach(self, job: Job, submit: Submit) -> None:
        known = job.waiters.get(submit.claim.job_id)
        waiter = Waiter(submit.incarnation, submit.seq)
        if known is not None and known.frontend == submit.incarnation:
            waiter.served_at, waiter.repeats = known.served_at, known.repeats
        self._state.jobs.attach(job, submit.claim.job_id, waiter)

    # --- Executions ----------------------------------------------------------------------------

    def dispatch(self, now: float) -> None:
        """Give waiting jobs to idle workers: returned jobs first, then by turns; the longest idle first."""
        if self._state.is_rebuilding:
            return
        self._fail_exhausted(now)
        idle = self._state.workers.idle
        while idle and (job := self._state.jobs.next_waiting()) is not None:
            # Another broker may have begun it since it was looked at last, and it may have failed there.
            self.adoption.look_everywhere(job, None, now)
            if job.is_waiting and job.is_exhausted:
                self._fail_exhausted(now)
            elif job.is_waiting:
                self._start(job, idle.longest(rather_not=job.last_worker_id), now)

    def _fail_exhausted(self, now: float) -> None:
        for job in list(self._state.jobs.exhausted.values()):
            failure = job.last_failure or _LATER
            if job.crashes >= MAX_CRASHES:
                detail = f"{job.crashes} engine processes died on it, the last one: {failure.detail}"
                failure = JobFailed(code=FailureCode.POISON_JOB, detail=detail[:500])
            self.fail(job, self._own_outcome(job, failure), now)

    def _start(self, job: Job, worker: Worker, now: float) -> None:
        execution_id = self._state.new_execution_id()
        self._state.own(job, execution_id)
        if isinstance(job.state, Queued):
            self._state.counters.queue_wait_s.observe(now - job.state.since)
        job.attempts += 1
        job.last_worker_id = worker.worker_id
        self._state.jobs.change(job, Dispatched(worker.worker_id, execution_id, now))
        self._state.workers.set_slot(worker, Offered(job.job_id, execution_id, now))
        self.send_start(worker, job, execution_id, now)
        self._state.tell_waiters(job)
        self._state.note(
            "job dispatched",
            job_id=job.job_id,
            worker_id=worker.worker_id,
            execution_id=execution_id,
            attempt=job.attempts,
        )

    def send_start(self, worker: Worker, job: Job, execution_id: bytes, now: float) -> None:
        self.adoption.send_start(worker, job, execution_id, job.job_id, now)

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
        give_up_at = waits_from + self._state.timing.retry_wait_s
        self._state.jobs.change(job, Returned(give_up_at, failure))

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
        if isinstance(job.state, Dispatched):
            self._count_completion(job, outcome, now)
            self._state.note(
                "job completed",
                job_id=job.job_id,
                worker_id=outcome.worker_id,
                attempt=job.attempts,
                run_s=round(now - job.state.since, 3),
            )
        self._state.jobs.change(job, Delivering(outcome.worker_id, outcome.execution_id, None))
        self._pass_on(job, outcome, now)
        self._end_if_unwaited(job)

    def fail(self, job: Job, outcome: Outcome, now: float) -> None:
        if not job.is_counted:
            job.is_counted = True
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
        for waiter in job.waiters.values():
            waiter.served_at, waiter.repeats = None, 0
        self._state.jobs.change(job, Failed(outcome))
        self._pass_on(job, outcome, now)
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
            if outcome.image.steps_time_s is not None:
                self._state.counters.step_s.observe(outcome.image.steps_time_s / job.parameters.steps)

    def _pass_on(self, job: Job, outcome: Outcome, now: float) -> None:
        """To everyone who waits and has not got it yet, under the name of its own call."""
        for waiter_id, waiter in job.waiters.items():
            frontend = self._state.frontends.get(waiter.frontend)
            if frontend is not None and waiter.served_at is None:
                waiter.served_at = now
                self._state.send_frontend(frontend.route, dataclasses.replace(outcome, job_id=waiter_id))

    def still_listed(self, job: Job, waiter: Waiter, now: float) -> None:
        """A frontend waits, perhaps for what was passed on to it already: say it again, or make it again."""
        if waiter.served_at is not None and now - waiter.served_at >= self._patience_s(job, waiter):
            waiter.served_at = None
            waiter.repeats += 1
        if waiter.served_at is not None:
            return
        match job.state:
            case Failed(outcome=outcome):
                self._pass_on(job, outcome, now)
            case Delivering(asked_at=asked_at) if asked_at is not None and not self._is_overdue(
                asked_at, now
            ):
                pass  # It is on its way.
            case Delivering() as delivering if self._holder(delivering) is not None:
                self._ask_again(job, delivering, now)
            case Delivering():
                self._draw_again(job, now)
            case _:
                pass

    def _patience_s(self, job: Job, waiter: Waiter) -> float:
        """How long its frontend may take to receive it; for an image that is gone nobody need wait."""
        repeat_after_s = self._state.timing.repeat_after_s
        if isinstance(job.state, Delivering) and self._holder(job.state) is None:
            return repeat_after_s
        return min(repeat_after_s * 2.0 ** min(waiter.repeats, 10), max(LONGEST_REPEAT_S, repeat_after_s))

    def _is_overdue(self, since: float, now: float) -> bool:
        return now - since >= self._state.timing.repeat_after_s

    def _holder(self, delivering: Delivering) -> Worker | None:
        worker = self._state.workers.registered.get(delivering.worker_id)
        return worker if worker is not None and worker.holds(delivering.execution_id) else None

    def _ask_again(self, job: Job, delivering: Delivering, now: float) -> None:
        """For all whom it has not reached: one transfer from the worker serves them all."""
        self._state.jobs.change(job, dataclasses.replace(delivering, asked_at=now))
        worker = self._state.workers.registered.get(delivering.worker_id)
        if worker is not None:  # Whether it still holds it, its next report will tell.
            self._state.ask_for_image(worker, delivering.execution_id)

    def _draw_again(self, job: Job, now: float) -> None:
        """The image is gone. One that was kept for a repeat has been nobody's attempt."""
        if job.attempts == 0:
            self._state.jobs.change(job, Queued(now))
        else:
            self.put_back(job, _IMAGE_LOST, now)

    # --- The end -------------------------------------------------------------------------------

    def leave(self, job: Job, waiter_id: bytes) -> None:
        """This call does not wait any more: it was answered, or given up."""
        self._state.jobs.detach(job, waiter_id)
        if not job.waiters and not self._goes_on_detached(job):
            self.end(job)

    def let_go(self, job: Job, waiter_id: bytes) -> None:
        """This call waits at another broker now. What was begun for it goes on, for that one to take over."""
        if waiter_id in job.waiters:
            self._state.jobs.detach(job, waiter_id)
        job.has_moved = True
        if job.waiters:
            return
        self._state.note("job moved to another broker", job_id=job.job_id)
        self._forget(job)

    def _goes_on_detached(self, job: Job) -> bool:
        return job.is_active and job.claim.detach and job.claim.idempotency_hash is not None

    def orphan(self, job: Job, waiter_id: bytes, now: float) -> None:
        """Its frontend is lost. A client with an idempotency key may come back through another."""
        self._state.jobs.lose(job, waiter_id)
        if job.waiters:
            return
        if job.is_active and job.claim.idempotency_hash is not None:
            job.orphaned_at = now
        else:
            self.end(job)

    def miss(self, job: Job, waiter_id: bytes) -> None:
        """The frontend that was thought to be lost is back, without this call: nobody will come for it."""
        self._state.jobs.miss(job, waiter_id)
        if not job.waiters and not job.lost and not self._goes_on_detached(job):
            self.end(job)

    def end(self, job: Job) -> None:
        """Nobody waits for it any more: because it was delivered, or because it was given up."""
        if job.is_active and not job.is_counted:
            self._count_end_without_outcome(job)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        """Tell its worker that it is not wanted here any more."""
        self._state.jobs.remove(job)
        match job.state:
            case (
                Dispatched(worker_id=worker_id, execution_id=execution_id)
                | Delivering(worker_id=worker_id, execution_id=execution_id)
            ):
                if job.has_moved:
                    self._state.let_go(execution_id, worker_id)
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

    def watch_all(self, now: float) -> None:
        may_give_up = not self._may_be_taken()
        for job in list(self._state.jobs):
            self._watch(job, now, may_give_up=may_give_up)

    def _watch(self, job: Job, now: float, *, may_give_up: bool) -> None:
        timing = self._state.timing
        if now >= job.deadline + timing.heartbeat_interval_s:
            self.end(job)  # Its frontends have answered long ago, by their own clocks.
        elif self._is_forsaken(job, now):
            self.end(job)
        elif isinstance(job.state, Returned) and now >= job.state.give_up_at and may_give_up:
            self.fail(job, self._own_outcome(job, job.state.failure), now)

    def _is_forsaken(self, job: Job, now: float) -> bool:
        if job.orphaned_at is None or self._goes_on_detached(job):
            return False
        return now - job.orphaned_at >= self._state.timing.orphan_grace_s

    def _may_be_taken(self) -> bool:
        """Whether a worker is there that will be idle: it is busy, or loads its model."""
        workers, probe_after_s = self._state.workers, self._state.timing.probe_after_s
        return bool(workers.serving) or any(
            worker.is_loading(self._state.silence_at, probe_after_s) for worker in workers
        )
