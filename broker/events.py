"""What the broker can be told. Its answers are in `actions.py`; the broker itself in `core.py`.

A *route* is the address of a connection, good for an answer as long as the connection lives.
"""

from dataclasses import dataclass

from proto.messages import ToBrokerFromFrontend, ToBrokerFromWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class FromWorker:
    route: bytes
    message: ToBrokerFromWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class FromFrontend:
    route: bytes
    message: ToBrokerFromFrontend


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerUnreachable:
    """A message to this route could not be sent: there is no such connection."""

    route: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendUnreachable:
    route: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeardUntil:
    """More has come than could be told yet: all that had come by this instant, on the clock of `handle`, was.

    None: there is no such backlog any more.
    """

    instant: float | None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Admit nothing from now on, and say so; the process is about to end."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The broker's own deadline has come."""


Event = (
    FromWorker
    | FromFrontend
    | WorkerUnreachable
    | FrontendUnreachable
    | HeardUntil
    | DrainRequested
    | TimerFired
)
