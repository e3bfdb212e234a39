"""The admission table: whether a new job is taken, and if not, why and for how long (PROTOCOL.md §9)."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from broker.estimates import NextFree, RunTimes
from broker.jobs import Dispatched, Job, JobTable
from broker.workers import Worker, WorkerTable
from proto.failures import RefusalReason
from proto.messages import Submit
from proto.timing import Timing

SHORTEST_RETRY_S = 0.1
LONGEST_RETRY_S = 60.0
DRAIN_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Refusal:
    reason: RefusalReason
    detail: str
    retry_after_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What the judgement rests on."""

    workers: WorkerTable
    jobs: JobTable
    run_times: RunTimes
    next_free: NextFree
    timing: Timing
    queue_limit: int
    draining: bool
    stopping: int
    """Workers that are stopping something that nobody wants: they are idle after their next step."""
    unowned: Counter[str]
    """By API key: what runs without a job, because an earlier broker or frontend was lost."""

    def judge(self, submit: Submit, now: float) -> Refusal | None:
        """None if the job is admitted."""
        if self.draining:
            return Refusal(RefusalReason.BROKER_DRAINING, "the broker is shutting down", DRAIN_RETRY_S)
        return self._judge_key(submit, now) or self._judge_workers(submit, now)

    def _judge_key(self, submit: Submit, now: float) -> Refusal | None:
        jobs = self.jobs.active_of(submit.claim.key_fingerprint)
        active = len(jobs) + self.unowned[submit.claim.key_fingerprint]
        if active < submit.key_job_limit:
            return None
        detail = f"{active} active, {submit.key_job_limit} allowed"
        wait_s = min(self._waits(jobs, now), default=self.timing.heartbeat_interval_s)
        return Refusal(RefusalReason.CLIENT_BUSY, detail, self._clamped(wait_s))

    def _judge_workers(self, submit: Submit, now: float) -> Refusal | None:
        if not len(self.workers):
            return Refusal(RefusalReason.NO_WORKERS, "", None)
        serving = len(self.workers.serving)
        if not serving:
            return Refusal(
                RefusalReason.WORKERS_NOT_READY, self._why_not_ready(), self.timing.heartbeat_interval_s
            )
        if self.jobs.returned:
            return self._all_busy("a job that lost its worker waits to run again", now)
        queued = len(self.jobs.turns)
        idle = len(self.workers.idle) + self.stopping
        if queued < idle:
            return self._judge_deadline(submit, 0.0, now)
        if queued >= idle + self.queue_limit:
            return self._all_busy(f"{serving - idle} of {serving} busy, {queued} queued", now)
        # Whoever is queued, the new job may be the next: its key may be the one whose turn it is.
        return self._judge_share(submit, now) or self._judge_deadline(submit, self._shortest_wait_s(now), now)

    def _judge_share(self, submit: Submit, now: float) -> Refusal | None:
        """One key is not to fill the queue, and so keep all others out."""
        waiting = self.jobs.turns.count(submit.claim.key_fingerprint)
        allowed = max(1, math.floor(submit.key_queue_share * self.queue_limit))
        if waiting < allowed:
            return None
        detail = f"{waiting} waiting, {allowed} of the queue's {self.queue_limit} allowed"
        return Refusal(RefusalReason.CLIENT_QUEUE_FULL, detail, self._first_free_s(now))

    def _judge_deadline(self, submit: Submit, wait_s: float, now: float) -> Refusal | None:
        """`wait_s`: a lower bound of the wait before it begins."""
        needed_s = wait_s + self.run_times.lower_bound_s(submit.parameters, now)
        remaining_s = submit.claim.remaining_ms / 1000
        if needed_s <= remaining_s:
            return None
        detail = (
            f"{remaining_s:.1f} s are left until the deadline; such an image takes at least {needed_s:.1f} s"
        )
        return Refusal(RefusalReason.DEADLINE_TOO_SHORT, detail, None)

    def _why_not_ready(self) -> str:
        states = sorted(
            {
                "silent" if worker.has_engine else worker.state_name()  # Otherwise it would serve.
                for worker in self.workers
            }
        )
        return f"{len(self.workers)} registered: {', '.join(states)}"

    def _all_busy(self, detail: str, now: float) -> Refusal:
        return Refusal(RefusalReason.ALL_WORKERS_BUSY, detail, self._first_free_s(now))

    def _first_free_s(self, now: float) -> float:
        """Until the first worker can be expected to be free."""
        return self._clamped(self.next_free.wait_s(now, lambda: self._shortest_expected_s(now)))

    def _shortest_expected_s(self, now: float) -> float:
        running = self.jobs.dispatched.values()
        return min(self._waits(running, now), default=self.timing.heartbeat_interval_s)

    def _waits(self, jobs: Iterable[Job], now: float) -> Iterator[float]:
        """Seconds until each of the jobs can be expected to end."""
        for job in jobs:
            left_s = self.run_times.expected_s(job.parameters, now)
            if isinstance(job.state, Dispatched):
                by_progress_s = self._left_by_progress(job.state, now)
                by_experience_s = None if left_s is None else left_s - (now - job.state.since)
                left_s = by_experience_s if by_progress_s is None else by_progress_s
            # Nothing known, or longer than expected: ask again when there has been news.
            yield self.timing.heartbeat_interval_s if left_s is None or left_s <= 0 else left_s

    def _left_by_progress(self, state: Dispatched, now: float) -> float | None:
        """From the denoising steps that the worker reported; None before the first one."""
        worker: Worker | None = self.workers.registered.get(state.worker_id)
        running = None if worker is None else worker.report.running
        if worker is None or running is None or running.execution_id != state.execution_id:
            return None
        if running.step == 0:
            return None
        done_s = worker.heard_at - state.since
        return done_s * (running.steps - running.step) / running.step - (now - worker.heard_at)

    def _shortest_wait_s(self, now: float) -> float:
        """A lower bound of it."""
        shortest_s = math.inf
        for job in self.jobs.dispatched.values():
            if isinstance(job.state, Dispatched):
                bound_s = self.run_times.lower_bound_s(job.parameters, now) - (now - job.state.since)
                shortest_s = min(shortest_s, bound_s)
            if shortest_s <= 0:
                return 0.0  # Nearly always the earliest of them, which come first.
        return shortest_s if self.jobs.dispatched else 0.0

    @staticmethod
    def _clamped(wait_s: float) -> float:
        return min(max(wait_s, SHORTEST_RETRY_S), LONGEST_RETRY_S)
