"""What the broker wants of a worker: derived from its tables whenever it speaks, never stored."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from broker.jobs import Dispatched, JobTable, key_of
from broker.workers import Offered, Worker, WorkerTable
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
class Doubts:
    """What a broker that has not run for long cannot know."""

    is_rebuilding: bool
    """Nobody has had the time yet to claim what workers run and hold."""
    may_be_orphans: bool
    """Executions with an idempotency key may be those of a frontend that was lost before its start."""


class _Wish(Enum):
    RELEASE = auto()
    KEEP = auto()
    RESEND = auto()


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

    def is_foreign(self, execution_id: bytes) -> bool:
        """Whether another life of the broker began it, and this one has not adopted it."""
        return execution_id not in self.own_executions

    def wishes(self, worker: Worker, doubts: Doubts) -> Wishes:
        """What is wanted of a worker, given what it last said."""
        wanted: dict[_Wish, list[bytes]] = {wish: [] for wish in _Wish}
        for outcome in worker.held.values():
            wish = self._wish_for(outcome, doubts)
            if wish is not None:
                wanted[wish].append(outcome.execution_id)
        unwanted = self._unwanted(worker, doubts)
        return Wishes(
            cancel=() if unwanted is None else (unwanted,),
            release=tuple(wanted[_Wish.RELEASE]),
            keep=tuple(wanted[_Wish.KEEP]),
            resend=tuple(wanted[_Wish.RESEND]),
        )

    def _unwanted(self, worker: Worker, doubts: Doubts) -> bytes | None:
        """What runs there for nobody, or will when the START arrives that was sent last."""
        match worker.running or worker.slot:
            case RunningExecution(execution_id=execution_id) as running:
                is_wanted = self.jobs.wanting(execution_id) is not None or self.goes_on(running, doubts)
            case Offered(execution_id=execution_id):
                is_wanted = self.jobs.wanting(execution_id) is not None
            case _:
                return None
        return None if is_wanted else execution_id

    def goes_on(self, running: RunningExecution, doubts: Doubts) -> bool:
        """Whether what runs for no known job is let run: somebody may ask for its image."""
        is_fenced = (
            self._is_ended_here(running, doubts)
            or self.jobs.answered_by(running.claim) is not None
            or bool(self.images_of(running.claim))
        )
        return _may_be_asked_for(running.claim, doubts) and not is_fenced

    def may_be_joined(self, running: RunningExecution, doubts: Doubts) -> bool:
        """The same, once there is the job that asks for it."""
        return not self._is_ended_here(running, doubts) and _may_be_asked_for(running.claim, doubts)

    def _is_ended_here(self, running: RunningExecution, doubts: Doubts) -> bool:
        """Whether the job that it had at this broker is all that could want it."""
        # What was adopted since the start may have another call, whose frontend has not spoken yet.
        may_have_others = doubts.is_rebuilding and running.claim.idempotency_hash is not None
        return running.execution_id in self.own_executions and not may_have_others

    def _wish_for(self, outcome: HeldOutcome, doubts: Doubts) -> _Wish | None:
        job = self.jobs.wanting(outcome.execution_id)
        if job is not None:
            return _Wish.RESEND if isinstance(job.state, Dispatched) else None
        if outcome.released or doubts.is_rebuilding:
            return None
        return _Wish.KEEP if self._is_worth_keeping(outcome) else _Wish.RELEASE

    def _is_worth_keeping(self, outcome: HeldOutcome) -> bool:
        """An image that a repeat may ask for. Of two with one idempotency key all repeats get the same."""
        if outcome.failure is not None or outcome.claim.idempotency_hash is None:
            return False
        job = self.jobs.with_key_of(outcome.claim)
        is_fenced = job is not None and job.current_execution is not None
        return not is_fenced and not self._is_held_elsewhere(outcome)

    def _is_held_elsewhere(self, image: HeldOutcome) -> bool:
        """Whether there is another image of this idempotency key that goes first."""
        others = self.images_of(image.claim)
        return bool(others) and precedence(others[0][1]) < precedence(image)

    def images_of(self, claim: JobClaim) -> list[tuple[Worker, HeldOutcome]]:
        """All images of this idempotency key, and where they are; the one that repeats get is the first."""
        key = key_of(claim)
        if key is None:
            return []
        found = [(worker, outcome) for worker in self.workers for outcome in worker.images.get(key, ())]
        return sorted(found, key=lambda entry: precedence(entry[1]))


def precedence(image: HeldOutcome) -> tuple[bool, bool, bytes]:
    """What was given before goes first, and what may still come to nothing last.

    Between others any order will do that is always the same.
    """
    return (not image.released, image.is_unfinished, image.execution_id)


def _may_be_asked_for(claim: JobClaim, doubts: Doubts) -> bool:
    """Whether a call that is not known yet may want what runs for no known job."""
    if doubts.is_rebuilding:
        return True
    return claim.idempotency_hash is not None and (claim.detach or doubts.may_be_orphans)
