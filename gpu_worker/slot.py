"""The states of a worker's one job slot, and how long each may last."""

from dataclasses import dataclass
from typing import assert_never

from gpu_worker.engines.engine import EngineJob
from gpu_worker.limits import SessionLimits
from proto.failures import FailureCode
from proto.messages import JobClaim, JobPhase


@dataclass(frozen=True, slots=True)
class Free:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """An execution is in the engine."""

    job: EngineJob
    claim: JobClaim
    """As the broker told it last."""
    deadline: float
    phase: JobPhase
    step: int
    phase_since: float
    """When the phase began, or the last step of it ended."""

    @property
    def execution_id(self) -> bytes:
        return self.job.execution_id

    def hung_at(self, limits: SessionLimits) -> float:
        """From when on the lack of progress means that the engine hangs."""
        return self.phase_since + limits.of(self.phase)


@dataclass(frozen=True, slots=True)
class Stopping:
    """The engine was asked to stop, or killed; whatever it still says, this is how the execution ends."""

    busy: Busy
    code: FailureCode
    detail: str
    since: float

    @property
    def execution_id(self) -> bytes:
        return self.busy.execution_id

    def hung_at(self, limits: SessionLimits) -> float:
        """A step that was allowed to take its time still is: a cancel must not cost a healthy engine."""
        return max(self.since + limits.cancel_s, self.busy.hung_at(limits))


Slot = Free | Busy | Stopping


def in_engine(slot: Slot) -> Busy | None:
    """The execution that occupies the engine, whether it is to stop or not."""
    match slot:
        case Free():
            return None
        case Busy():
            return slot
        case Stopping(busy=busy):
            return busy
        case _:
            assert_never(slot)


def slot_deadlines(slot: Slot, limits: SessionLimits) -> list[float]:
    """When something has to be done about a slot that does not change by itself until then."""
    match slot:
        case Free():
            return []
        case Busy(deadline=deadline):
            return [deadline, slot.hung_at(limits)]
        case Stopping():
            return [slot.hung_at(limits)]
        case _:
            assert_never(slot)
