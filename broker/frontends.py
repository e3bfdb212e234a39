"""The frontends as the broker knows them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from proto.latest import keep_latest

MAX_FRONTENDS: Final = 1000
"""Known at once."""
MAX_LEFT: Final = 1024
"""Incarnations that have left and are remembered, the latest ones."""


@dataclass(slots=True, kw_only=True)
class Frontend:
    frontend_id: str
    incarnation: bytes
    route: bytes
    heard_at: float
    seq: int
    """The highest one seen, of any message."""
    report_seq: int = -1
    """The highest one seen of a report; older reports are ignored."""
    unreachable_since: float | None = None
    """When a message to it could not be routed; None once it was heard again."""

    def pardon(self, absence_s: float, now: float) -> None:
        """The broker stood still for so long, and could hear nobody."""
        self.heard_at = min(self.heard_at + absence_s, now)
        if self.unreachable_since is not None:
            self.unreachable_since = min(self.unreachable_since + absence_s, now)


@dataclass(slots=True)
class FrontendTable:
    """By incarnation."""

    known: dict[bytes, Frontend] = field(default_factory=dict)
    left: dict[bytes, None] = field(default_factory=dict)
    """Incarnations that said good-bye, oldest first: their last words may come late."""

    def __iter__(self) -> Iterator[Frontend]:
        return iter(self.known.values())

    def __len__(self) -> int:
        return len(self.known)

    def get(self, incarnation: bytes) -> Frontend | None:
        return self.known.get(incarnation)

    def heard(self, frontend_id: str, incarnation: bytes, route: bytes, seq: int, now: float) -> Frontend:
        """Note the sign of life; the first one makes it known."""
        frontend = self.known.get(incarnation)
        if frontend is None:
            frontend = Frontend(
                frontend_id=frontend_id, incarnation=incarnation, route=route, heard_at=now, seq=seq
            )
            self.known[incarnation] = frontend
        frontend.heard_at, frontend.unreachable_since = now, None
        if seq >= frontend.seq:
            frontend.seq = seq
            frontend.route = route
        return frontend

    def leave(self, incarnation: bytes) -> None:
        self.left[incarnation] = None
        keep_latest(self.left, MAX_LEFT)

    def remove(self, frontend: Frontend) -> None:
        del self.known[frontend.incarnation]
