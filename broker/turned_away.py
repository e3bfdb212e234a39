"""Peers that the broker does not let in: counted each time, and logged once a minute and peer."""

import asyncio
from typing import Final, assert_never

import structlog

from proto.handshakes import HandshakeFailure, HandshakeFault
from proto.rarely import Rarely

_KEY_SHOWN: Final = 8
"""Characters of a public key in the log."""


class TurnedAway:
    def __init__(self) -> None:
        self._rarely = Rarely()

    @property
    def total(self) -> int:
        return self._rarely.total

    def add(self, role: str, why: str, *, address: str | None = None, key: str | None = None) -> None:
        """`role` is the socket's that was tried; of `address` and `key` what is known."""
        count = self._rarely.count((role, why, key or address), asyncio.get_running_loop().time())
        if count is not None:
            shown = f"{key[:_KEY_SHOWN]}…" if key else None
            structlog.get_logger().warning(
                "peer turned away", role=role, why=why, address=address, key=shown, count=count
            )

    def add_handshake(self, role: str, failure: HandshakeFailure, *, encrypted: bool) -> None:
        why = _explanation(failure.fault, encrypted)
        if why is not None:
            self.add(role, why, address=failure.address)


def _explanation(fault: HandshakeFault, encrypted: bool) -> str | None:
    """None: the authenticator has said so, or there is nothing to say."""
    match fault:
        case HandshakeFault.DENIED:
            return None
        case HandshakeFault.MECHANISM if encrypted:
            return "it does not encrypt"
        case HandshakeFault.MECHANISM:
            return "it encrypts, and this broker has no curve_key_file"
        case HandshakeFault.CRYPTOGRAPHIC:
            return "it expects another key of this broker (known_brokers_file)"
        case HandshakeFault.NO_AUTHENTICATOR:
            return "the authenticator is gone, nobody is admitted: start the broker again"
        case HandshakeFault.ENDED if encrypted:
            return "it did not finish the handshake: it may not encrypt"
        case HandshakeFault.ENDED:
            return None
        case HandshakeFault.OTHER:
            return "it does not speak ZMTP as this broker does"
        case _:
            assert_never(fault)
