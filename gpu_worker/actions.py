"""What a worker session can want done. What it is told is in `events.py`, the session in `session.py`."""

from dataclasses import dataclass

from gpu_worker.engines.engine import EngineJob
from proto.messages import ToBrokerFromWorker, TraceContext
from proto.notes import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToBroker:
    """Send if the connection takes it now; otherwise drop it, for a later report repairs everything."""

    broker: int
    """Which one, as in `FromBroker`."""
    message: ToBrokerFromWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectToBroker:
    """Close the socket with all that is queued in it, and open a fresh one."""

    broker: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartEngine:
    """Start engine process number `child`. There is no other one at this time."""

    child: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KillEngine:
    """Kill engine process number `child`; `EngineExited` follows when it is gone."""

    child: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunJob:
    """Hand the job to the engine process."""

    child: int
    job: EngineJob
    trace: TraceContext | None = None
    """Where its spans belong; None: it is not traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelJob:
    """Ask the engine process to stop at the next step; `EngineFailed` or `EngineDrawn` follows."""

    child: int
    execution_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The session is over: end the process."""

    code: int
    reason: str


Action = SendToBroker | ReconnectToBroker | StartEngine | KillEngine | RunJob | CancelJob | Exit | Note
