"""A log of what peers should not have sent: every message is counted, few are written."""

import structlog

from proto.codec import ProtocolViolation
from proto.rarely import Rarely


class ViolationLog:
    def __init__(self, role: str) -> None:
        self._role = role
        self._rarely = Rarely()

    @property
    def total(self) -> int:
        return self._rarely.total

    def add(self, route: bytes, violation: ProtocolViolation, now: float) -> None:
        """Count it, and write a line if there was none about this peer for a minute."""
        count = self._rarely.count(route, now)
        if count is not None:
            structlog.get_logger().warning(
                "message dropped", peer=self._role, route=route.hex(), why=str(violation), count=count
            )
