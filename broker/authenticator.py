"""The ZAP handler (RFC 27): libzmq asks it about every peer that connects to a CURVE server.

It lives on the broker's own loop, where it cannot end unseen as a thread can. Without it libzmq denies, as
the servers enforce their domain; what it cannot judge it denies too.
"""

from collections.abc import Callable
from typing import Final

import structlog
import zmq
from zmq.utils import z85

from proto.handshakes import plain_address
from proto.messages import Body
from proto.sockets import LoopSocket

ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_REQUEST_MAX_BYTES: Final = 1024 * 1024

log = structlog.get_logger()

Welcomes = Callable[[str, str, str], bool]
"""Whether to admit, to a role, the owner of a public key (Z85) at an address."""


class Authenticator:
    """Bound before the servers that need it. Raises zmq.ZMQError where the process has another one."""

    def __init__(self, welcomes: Welcomes) -> None:
        self._welcomes = welcomes
        self._socket = LoopSocket(zmq.ROUTER, _REQUEST_MAX_BYTES, self._on_request)
        try:
            self._socket.bind(ENDPOINT)
        except zmq.ZMQError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def _on_request(self, frames: list[Body]) -> None:
        route, _delimiter, _version, request_id, *_ = frames
        user_id = self._admitted(frames)
        status, text = (b"200", b"OK") if user_id is not None else (b"400", b"not authorized")
        self._socket.send([route, b"", _VERSION, request_id, status, text, user_id or b"", b""])

    def _admitted(self, frames: list[Body]) -> bytes | None:
        """The public key of a peer that is admitted, which its messages will bear."""
        try:
            version, _request_id, domain, address, _identity, mechanism, *credentials = map(bytes, frames[2:])
            if version != _VERSION or mechanism != b"CURVE" or len(credentials) != 1:
                return None
            key = z85.encode(credentials[0])
            who = (domain.decode(), key.decode(), plain_address(address.decode()))
            return key if self._welcomes(*who) else None
        except Exception:
            log.exception("a peer could not be judged, and is denied")
            return None
