"""Connections that fail before the first message: libzmq tells nobody but a monitor of the socket.

After some failures it does not even try again: a peer that is denied would wait in silence for ever.
"""

import errno
import itertools
import os
import socket as posix_socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import zmq

from proto.loop_reader import LoopReader

_FAILURES: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_WATCHED: Final = _FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_EVENT: Final = struct.Struct("=Hi")
"""zmq_socket_monitor(3): number and value of an event; the second frame is the local endpoint."""

_names = itertools.count()


class HandshakeFault(Enum):
    DENIED = auto()
    """The authenticator said no: seen on both sides."""
    MECHANISM = auto()
    """One side encrypts, the other does not."""
    CRYPTOGRAPHIC = auto()
    """A server: the peer expects another key here."""
    NO_AUTHENTICATOR = auto()
    """A server: there is nobody to ask, so it denies."""
    ENDED = auto()
    """The other side ended the connection, for any of these reasons or of its own."""
    OTHER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class HandshakeFailure:
    fault: HandshakeFault
    address: str | None
    """Of the other side, where a server could still find out before the connection was gone."""


_PROTOCOL_FAULTS: Final[Mapping[int, HandshakeFault]] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: HandshakeFault.MECHANISM,
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: HandshakeFault.CRYPTOGRAPHIC,
}


class HandshakeWatch:
    """Tells of each failed handshake of one socket. To be closed before that socket."""

    def __init__(self, socket: zmq.Socket[bytes], on_failure: Callable[[HandshakeFailure], None]) -> None:
        self._watched = socket
        self._on_failure = on_failure
        self._addresses: dict[int, str] = {}
        """By file descriptor, of present connections."""
        self._fault: HandshakeFault | None = None
        """Of the connection that ends with the next event."""
        endpoint = f"inproc://handshakes-{next(_names)}"
        socket.monitor(endpoint, _WATCHED)
        listener = socket.context.socket(zmq.PAIR)
        listener.set(zmq.LINGER, 0)
        listener.set(zmq.RCVHWM, 0)  # libzmq's own thread would wait for room, with a lock that closing needs
        listener.connect(endpoint)
        self._reader = LoopReader(listener, self._on_event)

    def close(self) -> None:
        if not self._watched.closed:
            self._watched.disable_monitor()
        self._reader.close()

    def _on_event(self, frames: list[zmq.Frame]) -> None:
        event, value = _EVENT.unpack(frames[0].bytes)
        if event == zmq.EVENT_ACCEPTED:
            self._accepted(value)
        elif event & _FAILURES:
            self._tell(None)
            self._fault = _fault_of(event, value)
            if self._fault is HandshakeFault.NO_AUTHENTICATOR:
                self._tell(None)  # libzmq leaves such a connection open until HANDSHAKE_IVL
        elif event == zmq.EVENT_DISCONNECTED:
            self._tell(self._addresses.pop(value, None))

    def _tell(self, address: str | None) -> None:
        fault, self._fault = self._fault, None
        if fault is not None:
            self._on_failure(HandshakeFailure(fault=fault, address=address))

    def _accepted(self, descriptor: int) -> None:
        self._addresses.pop(descriptor, None)
        address = _address_of_peer(descriptor)
        if address is not None:
            self._addresses[descriptor] = address


def _address_of_peer(descriptor: int) -> str | None:
    """None over ipc, or if the connection has ended by now: the number may even be another file's."""
    try:
        own = os.dup(descriptor)
    except OSError:
        return None
    try:
        connection = posix_socket.socket(fileno=own)
    except OSError:
        os.close(own)
        return None
    with connection:
        try:
            name = connection.getpeername()
        except OSError:
            return None
    return plain_address(str(name[0])) if isinstance(name, tuple) else None


def plain_address(address: str) -> str:
    """An IPv4 address as people write it, also where an IPv6 socket has got it."""
    return address.removeprefix("::ffff:")


def _fault_of(event: int, value: int) -> HandshakeFault:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return HandshakeFault.DENIED
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return _PROTOCOL_FAULTS.get(value, HandshakeFault.OTHER)
    if value == errno.EFAULT:  # as libzmq reports it (curve_server.cpp)
        return HandshakeFault.NO_AUTHENTICATOR
    return HandshakeFault.ENDED
