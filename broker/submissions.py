"""What becomes of a SUBMIT (PROTOCOL.md §5 to §7).

It joins a job, gets an image that is there already, waits to be judged, is refused, or becomes a new job.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from broker.admission import Admission, Refusal
from broker.frontends import Frontend
from broker.job_life import JobLife
from broker.jobs import MAX_JOBS, MAX_WAITERS, Dispatched, Job, is_same_image, is_same_key
from broker.state import BrokerState, PendingSubmit
from broker.workers import Worker
from proto.failures import RefusalReason
from proto.messages import JobClaim, JobState, JobStatus, Refuse, RunningExecution, Submit

FULL_RETRY_S = 1.0
_MISMATCH = Refusal(
    RefusalReason.IDEMPOTENCY_MISMATCH,
    "the key belongs to a call with another prompt or other parameters",
    None,
)


class Submissions:
    def __init__(self, state: BrokerState, job_life: JobLife) -> None:
        self._state = state
        self._job_life = job_life

    def take(self, frontend: Frontend, submit: Submit, now: float) -> None:
        """Decide on it, and tell its frontend."""
        job = self._known_job(submit)
        refusal = self._why_not_at_all(submit, job)
        if refusal is not None:
            self._refuse(frontend, submit, refusal)
        elif job is not None:
            self._job_life.join(job, submit, now)
            self._answer(job, submit, now)
        elif not submit.accepted and (kept := self._kept_image(submit.claim)) is not None:
            self._answer(self._job_life.admit_kept(submit, *kept, now), submit, now)
        elif submit.accepted or self._has_begun(submit.claim):
            self._answer(self._job_life.admit(submit, now, has_begun=True), submit, now)
        elif self._state.is_rebuilding:
            self._state.pending[submit.claim.job_id] = PendingSubmit(submit, now)
            self._state.send_statuses(frontend, self.status(submit.claim.job_id))
        elif (refusal := self._admission().judge(submit, now)) is not None:
            self._refuse(frontend, submit, refusal)
        else:
            self._answer(self._job_life.admit(submit, now, has_begun=False), submit, now)

    def _why_not_at_all(self, submit: Submit, job: Job | None) -> Refusal | None:
        """What no state of the workers could change."""
        claim, state = submit.claim, self._state
        if not submit.accepted and self._is_mismatch(claim, job):
            return _MISMATCH
        if job is not None and claim.job_id not in job.waiters and len(job.waiters) >= MAX_WAITERS:
            state.shed("waiters")
            detail = f"{len(job.waiters)} calls wait for this job already"
            return Refusal(RefusalReason.CLIENT_BUSY, detail, FULL_RETRY_S)
        others = len(state.pending) - (claim.job_id in state.pending)
        if job is None and len(state.jobs) + others >= MAX_JOBS:
            state.shed("jobs")
            return Refusal(RefusalReason.BROKER_FULL, f"{MAX_JOBS} jobs are known already", FULL_RETRY_S)
        return None

    def judge_pending(self, now: float) -> None:
        """Those that came while nobody knew what workers run and hold, at the end of the window.

        First those whose execution was spared for them; what is left of such counts for nothing then.
        """
        pending, self._state.pending = self._state.pending, {}
        begun = {
            job_id: waiting
            for job_id, waiting in pending.items()
            if self._has_begun(waiting.submit.claim) and not self._is_mismatch(waiting.submit.claim, None)
        }
        self._judge(begun.values(), now)
        self._state.is_rebuilt = True
        self._judge((waiting for job_id, waiting in pending.items() if job_id not in begun), now)

    def _judge(self, pending: Iterable[PendingSubmit], now: float) -> None:
        for waiting in pending:
            frontend = self._state.frontends.get(waiting.submit.incarnation)
            if frontend is not None:
                self.take(frontend, self._aged(waiting, now), now)

    def forget(self, frontend: Frontend) -> None:
        """It is lost: nobody would hear how its calls are judged."""
        self._keep_pending(lambda submit: submit.incarnation != frontend.incarnation)

    def reported(self, frontend: Frontend, listed: set[bytes]) -> None:
        """What its report leaves out is given up, unless it was submitted after the report."""
        self._keep_pending(
            lambda submit: (
                submit.incarnation != frontend.incarnation
                or submit.claim.job_id in listed
                or submit.seq > frontend.report_seq
            )
        )

    def status(self, waiter_id: bytes) -> JobStatus:
        job = self._state.jobs.of_waiter(waiter_id)
        if job is not None:
            return job.status(waiter_id)
        is_pending = waiter_id in self._state.pending
        return JobStatus(job_id=waiter_id, state=JobState.PENDING if is_pending else JobState.UNKNOWN)

    def _keep_pending(self, is_kept: Callable[[Submit], bool]) -> None:
        if self._state.pending:
            self._state.pending = {
                job_id: waiting for job_id, waiting in self._state.pending.items() if is_kept(waiting.submit)
            }

    @staticmethod
    def _aged(waiting: PendingSubmit, now: float) -> Submit:
        submit = waiting.submit
        left_ms = max(0, submit.claim.remaining_ms - round((now - waiting.arrived_at) * 1000))
        return dataclasses.replace(submit, claim=dataclasses.replace(submit.claim, remaining_ms=left_ms))

    # --- What is known of the call -------------------------------------------------------------

    def _known_job(self, submit: Submit) -> Job | None:
        claim, jobs = submit.claim, self._state.jobs
        known = jobs.of_waiter(claim.job_id) or jobs.get(claim.job_id)
        if known is not None:
            return known
        repeated = jobs.with_key_of(claim)
        # Two calls that were both accepted under one key, by brokers that did not know of each other, go on
        # side by side.
        is_apart = repeated is not None and submit.accepted and not is_same_image(repeated.claim, claim)
        return None if is_apart else repeated

    def _is_mismatch(self, claim: JobClaim, job: Job | None) -> bool:
        """Whether the same key, or the same job, stands for another image."""
        if job is not None:
            return not is_same_image(job.claim, claim)
        images = (image.claim for _, image in self._state.images_of(claim))
        known = (*images, *(running.claim for running in self._unowned_with_key_of(claim)))
        return any(not is_same_image(other, claim) for other in known)

    def _kept_image(self, claim: JobClaim) -> tuple[Worker, bytes] | None:
        """Where the image for a repeat lies, if it can be had."""
        for worker, image in self._state.images_of(claim):
            if worker.unreachable_since is None and not image.is_unfinished:
                return worker, image.execution_id
        return None

    def _has_begun(self, claim: JobClaim) -> bool:
        """Whether it was admitted before, or a call that it repeats: it joins that execution."""
        if any(self._state.has_execution_of(worker, claim) for worker in self._state.workers.having(claim)):
            return True  # By an earlier broker, and its frontend had not heard of it yet.
        if any(worker.unreachable_since is None for worker, _ in self._state.images_of(claim)):
            return True  # A PNG is being made of what another call has left.
        return any(True for _ in self._unowned_with_key_of(claim))

    def _unowned_with_key_of(self, claim: JobClaim) -> Iterator[RunningExecution]:
        for worker in self._state.workers.having(claim):
            running = worker.running
            if (
                running is not None
                and is_same_key(running.claim, claim)
                and not running.stopping
                and worker.unreachable_since is None
                and self._state.runs_unowned(worker)
            ):
                yield running

    # --- What is decided -----------------------------------------------------------------------

    def _answer(self, job: Job, submit: Submit, now: float) -> None:
        before = job.state
        self._job_life.dispatch(now)
        if job.state is before or not isinstance(job.state, Dispatched):
            self._state.tell_waiter(job, submit.claim.job_id)  # Otherwise the dispatch has told it.

    def _admission(self) -> Admission:
        state = self._state
        unowned, stopping = [], 0
        for worker in state.strays():
            if state.runs_unowned(worker):
                unowned.append(worker)
            else:
                stopping += worker.worker_id in state.workers.serving
        return Admission(
            workers=state.workers,
            jobs=state.jobs,
            run_times=state.run_times,
            next_free=state.next_free,
            timing=state.timing,
            queue_limit=state.queue_limit,
            draining=state.draining,
            stopping=stopping,
            unowned=Counter(worker.running.claim.key_fingerprint for worker in unowned if worker.running),
        )

    def _refuse(self, frontend: Frontend, submit: Submit, refusal: Refusal) -> None:
        self._state.counters.rejected[refusal.reason] += 1
        self._state.note("job refused", job_id=submit.claim.job_id, reason=refusal.reason.value)
        retry_after_ms = None if refusal.retry_after_s is None else round(refusal.retry_after_s * 1000)
        refuse = Refuse(
            reason=refusal.reason,
            detail=refusal.detail,
            job_id=submit.claim.job_id,
            retry_after_ms=retry_after_ms,
        )
        self._state.send_frontend(frontend.route, refuse)
