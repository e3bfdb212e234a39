"""What the job desk can want done. What it is told is in `events.py`; the desk itself in `job_desk.py`."""

from dataclasses import dataclass

from proto.failures import FailureCode, RefusalReason
from proto.messages import Body, ModelCard, Snapshot, ToBrokerFromFrontend
from proto.notes import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToBroker:
    """Send if the connection takes it now; otherwise drop it, for a later report repairs everything."""

    broker: int
    """Which one, as in `FromBroker`."""
    message: ToBrokerFromFrontend


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectToBroker:
    """Close the socket with all that is queued in it, and open a fresh one."""

    broker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDelivered:
    png: Body
    inference_time_s: float
    seed: int
    worker_id: str = ""
    attempts: int = 0
    """Executions of the job, with the one that made it."""
    model: ModelCard | None = None
    """That drew it, if its worker says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRefused:
    """It was never accepted, or this frontend leaves before its end."""

    reason: RefusalReason
    detail: str
    retry_after_s: float | None
    """None where waiting cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobGivenUp:
    """It was accepted, and ends without an image."""

    code: FailureCode
    detail: str
    attempts: int


JobEnd = ImageDelivered | JobRefused | JobGivenUp


@dataclass(frozen=True, slots=True, kw_only=True)
class EndJob:
    """Answer the RPC. Comes at most once for a job, and never after `WaiterLeft`."""

    job_id: bytes
    end: JobEnd


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotArrived:
    """A broker's answer to the last `SnapshotWanted`."""

    broker: int
    snapshot: Snapshot


Action = SendToBroker | ReconnectToBroker | EndJob | SnapshotArrived | Note
