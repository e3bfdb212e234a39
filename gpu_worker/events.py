"""What a worker session can be told. Its answers are in `actions.py`; the session itself in `session.py`."""

from dataclasses import dataclass

from proto.failures import FailureCode
from proto.messages import Body, JobPhase, ModelCard, Readings, ToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class FromBroker:
    broker: int
    """Which of the brokers that it is connected to, by their order in the settings."""
    message: ToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingsTaken:
    """Fresh CPU, RAM and GPU readings; their age counts from now."""

    readings: Readings


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested:
    """Finish what runs, take nothing new, leave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimerFired:
    """The session's own deadline has come."""


# From the engine process. `child` numbers the processes of this worker's life: what a dead one still
# had to say must not be taken for the words of its successor. Instants are of the host's monotonic clock,
# which all its processes share; 0 where nobody looked.


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoading:
    child: int
    activity: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReady:
    """The model is loaded and has drawn its warm-up image."""

    child: int
    model: ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgress:
    child: int
    execution_id: bytes
    phase: JobPhase
    step: int
    """Denoising steps finished."""
    at: float = 0.0
    """When the phase began, or the step ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDrawn:
    """The pixels are there: the process takes the next job. `EngineFinished` or `EngineFailed` follows."""

    child: int
    execution_id: bytes
    inference_time_s: float
    steps_time_s: float | None = None
    """Of that, what the denoising steps took; None of an engine that does not tell their phase."""
    text_cached: bool | None = None
    """Whether the prompt had been encoded before; None where nothing is kept of that."""
    at: float = 0.0
    """When the last pixel was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFinished:
    """The PNG of what was drawn."""

    child: int
    execution_id: bytes
    png: Body
    begun_at: float = 0.0
    """When it was begun to be made."""
    at: float = 0.0
    """When it was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFailed:
    """The job failed or was cancelled, or what was drawn became no PNG; the process goes on."""

    child: int
    execution_id: bytes
    code: FailureCode
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineExited:
    """The process is gone."""

    child: int
    reason: str
    """For people: the exit code or signal, or what it ended with. Clients see it unless it is `hopeless`, so
    it has no library's own words, which may name a path or repeat a prompt."""
    hopeless: bool = False
    """The model itself is unusable: starting again cannot help until somebody changes something."""
    temporary: bool = False
    """It cannot load while others take what it needs: it is tried again however often that takes."""
    code: FailureCode | None = None
    """What it says its end means for the job in it; None if it could say nothing."""


EngineEvent = (
    EngineLoading | EngineReady | EngineProgress | EngineDrawn | EngineFinished | EngineFailed | EngineExited
)
Event = FromBroker | ReadingsTaken | DrainRequested | TimerFired | EngineEvent
