"""What a worker or frontend says when a broker does not let it in, instead of waiting in silence."""

from typing import assert_never

import structlog

from proto.curve import CurveClient
from proto.handshakes import HandshakeFault
from proto.rarely import Rarely


class DenialLog:
    """Of the connections to one broker."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._rarely = Rarely()

    def add(self, fault: HandshakeFault, curve: CurveClient | None, now: float) -> None:
        """Write a line if there was none of this fault for a minute. `curve` is what was tried with."""
        count = self._rarely.count(fault, now)
        if count is not None:
            structlog.get_logger().warning(
                "no connection to broker",
                broker=self._endpoint,
                why=_explanation(fault, curve),
                own_key=curve.keys.public if curve else None,
                count=count,
            )


def _explanation(fault: HandshakeFault, curve: CurveClient | None) -> str:
    match fault:
        case HandshakeFault.DENIED:
            return "denied: its authorized_keys_file does not list this key for this role"
        case HandshakeFault.MECHANISM if curve is None:
            return "it asks for encryption: set curve_key_file"
        case HandshakeFault.MECHANISM:
            return "it does not encrypt: it has no curve_key_file"
        case HandshakeFault.ENDED if curve is None:
            return "the handshake was not finished: it may hang, or ask for encryption (curve_key_file)"
        case HandshakeFault.ENDED:
            return "the handshake was not finished: it may hang, or known_brokers_file has another key"
        case HandshakeFault.CRYPTOGRAPHIC | HandshakeFault.NO_AUTHENTICATOR | HandshakeFault.OTHER:
            return f"the handshake failed: {fault.name}"
        case _:
            assert_never(fault)
