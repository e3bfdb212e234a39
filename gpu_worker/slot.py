"""The states of a worker's one job slot."""

from dataclasses import dataclass

from gpu_worker.engines.engine import EngineJob
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
    deadline: float
    phase: JobPhase
    step: int
    phase_since: float
    """When the phase began, or the last step of it ended."""

    @property
    def execution_id(self) -> bytes:
        return self.job.execution_id


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


Slot = Free | Busy | Stopping
