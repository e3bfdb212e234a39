"""A log of what peers should not have sent: every message is counted, few are written."""

from typing import Final

import structlog

from proto.codec import ProtocolViolation

SILENCE_S: Final = 60.0
"""Between two lines about the same peer."""
MAX_PEERS: Final = 256
"""Peers that are told apart; the oldest is forgotten."""


class ViolationLog:
    def __init__(self, role: str) -> None:
        self._role = role
        self._counts: dict[bytes, int] = {}
        self._written_at: dict[bytes, float] = {}
        self.total = 0

    def add(self, route: bytes, violation: ProtocolViolation, now: float) -> None:
        """Count it, and write a line if there was none about this peer for a minute."""
        self.total += 1
        self._counts[route] = self._counts.pop(route, 0) + 1
        if now - self._written_at.get(route, -SILENCE_S) >= SILENCE_S:
            self._written_at[route] = now
            structlog.get_logger().warning(
                "message dropped",
                peer=self._role,
                route=route.hex(),
                why=str(violation),
                count=self._counts[route],
            )
        while len(self._counts) > MAX_PEERS:
            oldest = next(iter(self._counts))
            del self._counts[oldest]
            self._written_at.pop(oldest, None)
