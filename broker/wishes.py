"""What the broker wants of a worker: derived from its tables whenever it speaks, never stored."""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from broker.jobs import Dispatched, JobTable, is_same_image, key_of
from broker.workers import Offered, Running, Worker, WorkerTable
from proto.latest import keep_latest
from proto.messages import HeldOutcome, JobClaim, RunningExecution
from proto.timing import Timing

MAX_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """Executions, as a view names them."""

    cancel: tuple[bytes, ...] = ()
    release: tuple[bytes, ...] = ()
    keep: tuple[bytes, ...] = ()
    resend: tuple[bytes, ...] = ()
    wanted: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    now: float
    is_rebuilt: bool
    """The rebuild window is over, and who waited for its end was judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubts:
    """What a broker cannot know of an execution that was another's until a short time ago."""

    is_new: bool
    """Nobody has had the time yet to claim it here."""
    may_be_orphan: bool
    """With an idempotency key, its frontend may have been lost: a repeat may come."""


class _Wish(Enum):
    RELEASE = auto()
    KEEP = auto()
    RESEND = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class WishMaker:
    workers: WorkerTable
    jobs: JobTable
    timing: Timing
    own_executions: dict[bytes, None] = field(default_factory=dict)
    """That this broker has begun or adopted, oldest first: without a job it has ended them."""

    def own(self, execution_id: bytes) -> None:
        self.own_executions[execution_id] = None
        keep_latest(self.own_executions, MAX_REMEMBERED)

    def disown(self, execution_id: bytes) -> None:
        self.own_executions.pop(execution_id, None)

    def is_foreign(self, execution_id: bytes) -> bool:
        """Whether another broker, or another life of this one, has begun it, and this one not adopted it."""
        return execution_id not in self.own_executions

    def wishes(self, worker: Worker, moment: Moment) -> Wishes:
        """What is wanted of a worker, given what it last said."""
        wished: dict[_Wish, list[bytes]] = {wish: [] for wish in _Wish}
        for outcome in worker.held.values():
            wish = self._wish_for(worker, outcome, moment)
            if wish is not None:
                wished[wish].append(outcome.execution_id)
        unwanted = self._unwanted(worker, moment)
        return Wishes(
            cancel=() if unwanted is None else (unwanted,),
            release=tuple(wished[_Wish.RELEASE]),
            keep=tuple(wished[_Wish.KEEP]),
            resend=tuple(wished[_Wish.RESEND]),
            wanted=self.wanted(worker),
        )

    def wanted(self, worker: Worker) -> tuple[bytes, ...]:
        """What no other broker may end there, as a job that is known here waits for it."""
        slot = worker.slot
        in_slot = (slot.execution_id,) if isinstance(slot, Offered | Running) else ()
        there = dict.fromkeys((*in_slot, *worker.held))
        return tuple(execution_id for execution_id in there if self.jobs.wanting(execution_id) is not None)

    def _doubts(self, worker: Worker, execution_id: bytes, moment: Moment) -> Doubts:
        """The broker that wanted it may be gone, and its call on the way here.

        Of what this broker has begun or adopted itself it knows, once all have spoken.
        """
        if not self.is_foreign(execution_id):
            return Doubts(is_new=not moment.is_rebuilt, may_be_orphan=False)
        known_for_s = moment.now - worker.unwanted_since.get(execution_id, moment.now)
        return Doubts(
            is_new=known_for_s < self.timing.rebuild_s,
            may_be_orphan=known_for_s < self.timing.orphan_grace_s,
        )

    def _unwanted(self, worker: Worker, moment: Moment) -> bytes | None:
        """What runs there for nobody, or will when the START arrives that was sent last."""
        match worker.running or worker.slot:
            case RunningExecution(execution_id=execution_id) as running:
                is_wanted = self.jobs.wanting(execution_id) is not None or self.goes_on(
                    worker, running, moment
                )
            case Offered(execution_id=execution_id):
                is_wanted = self.jobs.wanting(execution_id) is not None or self.is_foreign(execution_id)
            case _:
                return None
        return None if is_wanted else execution_id

    def goes_on(self, worker: Worker, running: RunningExecution, moment: Moment) -> bool:
        """Whether what runs for no known job is let run: somebody may ask for its image."""
        if running.wanted_elsewhere:
            return True
        doubts = self._doubts(worker, running.execution_id, moment)
        is_fenced = (
            self._is_ended_here(running, doubts)
            or self.jobs.answered_by(running.claim) is not None
            or any(is_same_image(image.claim, running.claim) for _, image in self.images_of(running.claim))
        )
        return _may_be_asked_for(running.claim, doubts) and not is_fenced

    def may_be_joined(self, worker: Worker, running: RunningExecution, moment: Moment) -> bool:
        """The same, once there is the job that asks for it."""
        if running.wanted_elsewhere:
            return True
        doubts = self._doubts(worker, running.execution_id, moment)
        return not self._is_ended_here(running, doubts) and _may_be_asked_for(running.claim, doubts)

    def _is_ended_here(self, running: RunningExecution, doubts: Doubts) -> bool:
        """Whether the job that it had at this broker is all that could want it."""
        # What was adopted in the window may have another call, which is not judged yet or has not come.
        may_have_others = doubts.is_new and running.claim.idempotency_hash is not None
        return running.execution_id in self.own_executions and not may_have_others

    def _wish_for(self, worker: Worker, outcome: HeldOutcome, moment: Moment) -> _Wish | None:
        job = self.jobs.wanting(outcome.execution_id)
        if job is not None:
            # Whose PNG is still being made comes by itself: asked for now, it would come twice.
            is_missed = isinstance(job.state, Dispatched) and not outcome.is_unfinished
            return _Wish.RESEND if is_missed else None
        if outcome.released or outcome.wanted_elsewhere:
            return None
        if self._doubts(worker, outcome.execution_id, moment).is_new:
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
        holders = self.workers.by_name.of(key).values()
        found = [(worker, outcome) for worker in holders for outcome in worker.images.get(key, ())]
        return sorted(found, key=lambda entry: precedence(entry[1]))


def precedence(image: HeldOutcome) -> tuple[bool, bool, bytes]:
    """What was given before goes first, and what may still come to nothing last.

    Between others any order will do that is always the same.
    """
    return (not image.released, image.is_unfinished, image.execution_id)


def _may_be_asked_for(claim: JobClaim, doubts: Doubts) -> bool:
    """Whether a call that is not known yet may want what runs for no known job."""
    if doubts.is_new:
        return True
    return claim.idempotency_hash is not None and (claim.detach or doubts.may_be_orphan)
