"""The states of the two things that a session looks after: the engine process, and the one job slot."""

from dataclasses import dataclass

from gpu_worker.engines.engine import EngineJob
from proto.failures import FailureCode
from proto.messages import JobClaim, JobPhase, ModelCard

# --- The engine process ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Down:
    """There is no process; the next is started at `restart_at`."""

    restart_at: float
    failures: int
    """In a row, without the engine having been ready in between."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    child: int
    failures: int
    progress_at: float
    activity: str
    percent: int


@dataclass(frozen=True, slots=True)
class Ready:
    child: int
    model: ModelCard


@dataclass(frozen=True, slots=True)
class Dying:
    """Killed; it holds its device until `EngineExited`."""

    child: int
    failures: int
    reason: str


EngineState = Down | Loading | Ready | Dying

# --- The slot ----------------------------------------------------------------------------------


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
