"""The admission table: whether a new job is taken, and if not, why and for how long (PROTOCOL.md §6)."""

from collections.abc import Iterator
from dataclasses import dataclass

from broker.estimates import RunTimes
from broker.jobs import Dispatched, Job, JobTable, Queued, Returned
from broker.workers import Idle, Worker, WorkerTable
from proto.failures import RefusalReason
from proto.messages import Submit, WorkerPhase
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
    timing: Timing
    queue_limit: int
    draining: bool

    def judge(self, submit: Submit, now: float) -> Refusal | None:
        """None if the job is admitted."""
        if self.draining:
            return Refusal(RefusalReason.BROKER_DRAINING, "the broker is shutting down", DRAIN_RETRY_S)
        return self._judge_key(submit, now) or self._judge_workers(submit, now)

    def _judge_key(self, submit: Submit, now: float) -> Refusal | None:
        active = self.jobs.active_of(submit.claim.key_fingerprint)
        if len(active) < submit.key_job_limit:
            return None
        detail = f"this API key has {len(active)} active job(s), and may have {submit.key_job_limit}"
        return Refusal(RefusalReason.CLIENT_BUSY, detail, self._clamped(min(self._waits(active, now))))

    def _judge_workers(self, submit: Submit, now: float) -> Refusal | None:
        if not len(self.workers):
            return Refusal(RefusalReason.NO_WORKERS, "no worker is registered", None)
        serving = [worker for worker in self.workers if worker.is_serving(now, self.timing.probe_after_s)]
        if not serving:
            return Refusal(
                RefusalReason.WORKERS_NOT_READY, self._why_not_ready(), self.timing.heartbeat_interval_s
            )
        if any(isinstance(job.state, Returned) for job in self.jobs):
            return self._all_busy("a job that lost its worker waits to run again", now)
        queued = sum(isinstance(job.state, Queued) for job in self.jobs)
        idle = sum(isinstance(worker.slot, Idle) for worker in serving)
        if queued >= idle + self.queue_limit:
            return self._all_busy(f"all {len(serving)} worker(s) are busy, {queued} job(s) queued", now)
        return self._judge_deadline(submit, queued < idle, now)

    def _judge_deadline(self, submit: Submit, at_once: bool, now: float) -> Refusal | None:
        wait_s = 0.0 if at_once else min(self._shortest_waits(now), default=0.0)
        needed_s = wait_s + self.run_times.lower_bound_s(submit.parameters)
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
                "silent" if worker.report.phase is WorkerPhase.READY else worker.state_name()
                for worker in self.workers
            }
        )
        return f"{len(self.workers)} worker(s) registered, none of them ready: {', '.join(states)}"

    def _all_busy(self, detail: str, now: float) -> Refusal:
        running = [job for job in self.jobs if isinstance(job.state, Dispatched)]
        wait_s = min(self._waits(running, now), default=self.timing.heartbeat_interval_s)
        return Refusal(RefusalReason.ALL_WORKERS_BUSY, detail, self._clamped(wait_s))

    def _waits(self, jobs: list[Job], now: float) -> Iterator[float]:
        """Seconds until each of the jobs can be expected to end."""
        for job in jobs:
            expected_s = self.run_times.expected_s(job.parameters)
            if isinstance(job.state, Dispatched):
                elapsed_s = now - job.state.since
                yield self._left_by_progress(job.state, elapsed_s) or max(
                    0.0, (expected_s or 0.0) - elapsed_s
                )
            else:
                yield expected_s or self.timing.heartbeat_interval_s

    def _left_by_progress(self, state: Dispatched, elapsed_s: float) -> float | None:
        """From the denoising steps that the worker reported; None before the first one."""
        worker: Worker | None = self.workers.registered.get(state.worker_id)
        running = None if worker is None else worker.report.running
        if running is None or running.execution_id != state.execution_id or running.step == 0:
            return None
        return elapsed_s * (running.steps - running.step) / running.step

    def _shortest_waits(self, now: float) -> Iterator[float]:
        for job in self.jobs:
            if isinstance(job.state, Dispatched):
                yield max(0.0, self.run_times.lower_bound_s(job.parameters) - (now - job.state.since))

    @staticmethod
    def _clamped(wait_s: float) -> float:
        return min(max(wait_s, SHORTEST_RETRY_S), LONGEST_RETRY_S)
