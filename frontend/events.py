"""What the job desk can be told. Its answers are in `actions.py`; the desk itself in `job_desk.py`."""

from dataclasses import dataclass

from frontend.validation import ValidJob
from proto.messages import ToFrontend, TraceContext


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOpened:
    """An RPC with a valid key and valid parameters wants an image."""

    job_id: bytes
    """Fresh and random."""
    key_fingerprint: str
    job: ValidJob
    time_remaining_s: float
    """Until the RPC's deadline."""
    job_time_s: float | None = None
    """How long the job itself may take, if it is detached from the RPC; None: as long as that."""
    key_job_limit: int = 1
    """Active jobs that the API key may have."""
    key_queue_share: float = 1.0
    """Of the broker's queue, that the API key may fill."""
    idempotency_hash: bytes | None = None
    """16 bytes, the same for every repeat of this call. None: it has no repeats."""
    detach: bool = False
    """It goes on without a waiter; only with an idempotency hash."""
    trace: TraceContext | None = None
    """Where the job's spans belong; None: it is not traced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaiterLeft:
    """The RPC was cancelled, its client is gone, or its deadline passed."""

    job_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FromBroker:
    broker: int
    """Which of the brokers that it is connected to, by their order in the settings."""
    message: ToFrontend


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Somebody asks for the state of the whole service, as each broker knows it."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Take no new job; the open ones go on."""


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The process is about to end: give up what is open, and say good-bye."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The desk's own deadline has come."""


Event = JobOpened | WaiterLeft | FromBroker | SnapshotWanted | DrainRequested | LeaveRequested | TimerFired
