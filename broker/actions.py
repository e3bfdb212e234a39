"""What the broker can want done. What it is told is in `events.py`; the broker itself in `core.py`.

Sends never wait: what a peer does not take now is dropped, for the next report repairs it.
"""

from dataclasses import dataclass

from broker.jobs import State
from proto.messages import ToFrontend, ToWorker, TraceContext
from proto.notes import Note


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToWorker:
    """`WorkerUnreachable` comes back if the route has no connection."""

    route: bytes
    message: ToWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class SendToFrontend:
    """`FrontendUnreachable` comes back if the route has no connection."""

    route: bytes
    message: ToFrontend


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedJobMoved:
    """A job that is traced has entered a state, or is forgotten. Nothing depends on it."""

    job_id: bytes
    trace: TraceContext
    state: State | None
    """None for one that is forgotten."""
    attempts: int
    at: float
    """On the clock of `handle`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emptied:
    """A broker that drains has no job any more: it may end without anybody missing it. Said once."""


Action = SendToWorker | SendToFrontend | TracedJobMoved | Emptied | Note
