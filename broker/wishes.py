"""What the broker wants of a worker: derived from its tables whenever it speaks, never stored."""

from dataclasses import dataclass, field
from typing import Final

from broker.jobs import Dispatched, JobTable, is_same_key
from broker.workers import Worker, WorkerTable
from proto.messages import HeldOutcome, JobClaim, RunningExecution

MAX_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Executions, as a view names them."""

    cancel: tuple[bytes, ...] = ()
    release: tuple[bytes, ...] = ()
    keep: tuple[bytes, ...] = ()
    resend: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WishMaker:
    workers: WorkerTable
    jobs: JobTable
    own_executions: dict[bytes, None] = field(default_factory=dict)
    """That this broker has begun or adopted, oldest first: without a job it has ended them."""

    def own(self, execution_id: bytes) -> None:
        self.own_executions[execution_id] = None
        while len(self.own_executions) > MAX_REMEMBERED:
            del self.own_executions[next(iter(self.own_executions))]

    def wishes(self, worker: Worker, *, is_rebuilding: bool, may_be_orphans: bool) -> Wishes:
        """What is wanted of a worker, given what it last reported.

        While `is_rebuilding`, nobody has had the time to claim what it runs and holds. `may_be_orphans`: so
        short after the broker's start, executions with an idempotency key may be those of a frontend that was
        lost before it.
        """
        return Wishes(
            cancel=self._cancelled(worker, is_rebuilding=is_rebuilding, may_be_orphans=may_be_orphans),
            release=() if is_rebuilding else self._unwanted(worker, kept=False),
            keep=() if is_rebuilding else self._unwanted(worker, kept=True),
            resend=tuple(outcome.execution_id for outcome in worker.report.held if self._is_awaited(outcome)),
        )

    def _cancelled(self, worker: Worker, *, is_rebuilding: bool, may_be_orphans: bool) -> tuple[bytes, ...]:
        running = worker.running
        if running is None or self.jobs.wanting(running.execution_id) is not None:
            return ()
        goes_on = is_rebuilding or self._may_be_asked_for(running.claim, may_be_orphans=may_be_orphans)
        return () if goes_on and not self._is_fenced(running) else (running.execution_id,)

    def may_be_joined(self, running: RunningExecution) -> bool:
        """Whether it goes on for whoever asks: this broker has not ended it, nor is it stopping by itself."""
        return running.execution_id not in self.own_executions and not running.stopping

    @staticmethod
    def _may_be_asked_for(claim: JobClaim, *, may_be_orphans: bool) -> bool:
        """Whether a call that is not known yet may want what runs for no known job."""
        return claim.idempotency_hash is not None and (claim.detach or may_be_orphans)

    def _is_fenced(self, running: RunningExecution) -> bool:
        return (
            running.execution_id in self.own_executions
            or self.jobs.answered_by(running.claim) is not None
            or self._is_held_elsewhere(running.execution_id, running.claim)
        )

    def _is_awaited(self, outcome: HeldOutcome) -> bool:
        job = self.jobs.wanting(outcome.execution_id)
        return job is not None and isinstance(job.state, Dispatched)

    def _unwanted(self, worker: Worker, *, kept: bool) -> tuple[bytes, ...]:
        return tuple(
            outcome.execution_id
            for outcome in worker.report.held
            if not outcome.released
            and self.jobs.wanting(outcome.execution_id) is None
            and self._is_worth_keeping(outcome) is kept
        )

    def _is_worth_keeping(self, outcome: HeldOutcome) -> bool:
        """An image that a repeat may ask for. Of two with one idempotency key all repeats get the same."""
        if outcome.failure is not None or outcome.claim.idempotency_hash is None:
            return False
        job = self.jobs.with_key_of(outcome.claim)
        is_fenced = job is not None and job.current_execution is not None
        return not is_fenced and not self._is_held_elsewhere(outcome.execution_id, outcome.claim)

    def _is_held_elsewhere(self, execution_id: bytes, claim: JobClaim) -> bool:
        """Whether there is another image of this idempotency key, which was delivered or goes first."""
        return any(
            other.execution_id != execution_id
            and other.failure is None
            and is_same_key(other.claim, claim)
            # Between two that nobody was given yet, any rule will do that gives both the same answer.
            and (other.released or other.execution_id < execution_id)
            for worker in self.workers
            for other in worker.report.held
        )
