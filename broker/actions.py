"""What the broker can want done. What it is told is in `events.py`; the broker itself in `core.py`.

Sends never wait: what a peer does not take now is dropped, for the next report repairs it.
"""

from dataclasses import dataclass

from proto.messages import ToFrontend, ToWorker
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


Action = SendToWorker | SendToFrontend | Note
