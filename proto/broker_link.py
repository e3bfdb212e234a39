"""A peer's connection to the broker: one DEALER socket, replaced by a fresh one on demand."""

import asyncio
from collections.abc import Callable

import structlog
import zmq

from proto.codec import ProtocolViolation, decode, encode
from proto.denials import DenialLog
from proto.handshakes import HandshakeFailure
from proto.keyring import Keyring
from proto.messages import Body, FrontendReport, Message, WorkerReport
from proto.sockets import LoopSocket, SendResult
from proto.violations import ViolationLog

log = structlog.get_logger()


class BrokerLink:
    """Messages out and in. What cannot be sent now is dropped and counted: reports repair it."""

    def __init__(
        self,
        endpoint: str,
        max_message_bytes: int,
        on_message: Callable[[Message], None],
        keyring: Keyring | None = None,
    ) -> None:
        """Encrypted with what `keyring` has for this endpoint.

        `on_message` may raise `NotForThisRole`.
        """
        self._endpoint = endpoint
        self._keyring = keyring or Keyring.empty()
        self._keyring.on_change(self._on_new_keys)
        self._max_message_bytes = max_message_bytes
        self._on_message = on_message
        self._violations = ViolationLog("broker")
        self._denials = DenialLog(endpoint)
        self._curve = self._keyring.client_for(endpoint)
        self._socket = self._connected()
        self.dropped = 0
        """Messages that the connection did not take, other than reports."""

    @property
    def violations(self) -> int:
        """Messages that were none, and were dropped."""
        return self._violations.total

    def send(self, message: Message) -> bool:
        """Whether the connection took it; that it arrives is another thing."""
        if self._socket.send(encode(message)) is SendResult.SENT:
            return True
        # A report that is lost is said again, and most are lost to a broker that is not there.
        self.dropped += not isinstance(message, WorkerReport | FrontendReport)
        log.debug("message not sent", kind=type(message).__name__, dropped=self.dropped)
        return False

    def reconnect(self) -> None:
        """Forget the connection and all that is queued in it; a fresh one is made in the background."""
        self._socket.close()
        self._curve = self._keyring.client_for(self._endpoint)
        self._socket = self._connected()

    def close(self) -> None:
        self._keyring.no_longer(self._on_new_keys)
        self._socket.close()

    def _connected(self) -> LoopSocket:
        socket = LoopSocket(
            zmq.DEALER,
            self._max_message_bytes,
            self._on_frames,
            curve=self._curve,
            on_handshake_failure=self._on_handshake_failure,
        )
        socket.connect(self._endpoint)
        return socket

    def _on_new_keys(self) -> None:
        if self._keyring.client_for(self._endpoint) != self._curve:
            self.reconnect()

    def _on_handshake_failure(self, failure: HandshakeFailure) -> None:
        self._denials.add(failure.fault, self._curve, asyncio.get_running_loop().time())

    def _on_frames(self, frames: list[Body]) -> None:
        try:
            self._on_message(decode(frames))
        except ProtocolViolation as violation:
            self._violations.add(b"", violation, asyncio.get_running_loop().time())
