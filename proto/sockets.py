"""ZeroMQ sockets on the asyncio loop: frames arrive at a callback, sends never wait."""

from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final, Protocol

import zmq

from proto.backlog import Speaker
from proto.curve import CurveClient, CurveServer
from proto.handshakes import HandshakeFailure, HandshakeWatch
from proto.loop_reader import Frames, LoopReader
from proto.messages import Body

HIGH_WATER_MARK: Final = 1024
"""Messages queued for, and from, one peer: a frontend with all its calls at once. Images are far fewer,
as many as jobs that run."""
DEAD_CONNECTION_MS: Final = 3000
"""Without a sign of the other host's kernel. Not by ZMTP's heartbeats: with them libzmq 4.3 ends the process
when a connection is lost while its messages wait for room (libzmq issues 3937, 4364, 4767).
"""
_PROBE_S: Final = 1
HANDSHAKE_MS: Final = 2500
"""Less than `broker_silent_s`, so that a peer hears of it before it gives up its socket."""
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 1000

# As plain numbers: with pyzmq's own flags each call takes longer.
_LAST: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_COPIED_BELOW_BYTES: Final = 64 * 1024
"""Smaller frames are copied out of libzmq's memory: cheaper than keeping a reference into it."""


class SendResult(Enum):
    SENT = auto()
    QUEUE_FULL = auto()
    """The peer takes nothing at present, or there is no connection."""
    UNREACHABLE = auto()
    """A ROUTER knows no connection of that routing identity, or must not use it any more."""


class Guard(Protocol):
    """Of a ROUTER: whose messages count, and who gets any, while its connection lasts."""

    def admits(self, route: bytes, public_key: str | None) -> bool:
        """Whether to hear a message that came by this route from the owner of this key."""
        ...

    def may_be_told(self, route: bytes) -> bool:
        """Whether to send by this route."""
        ...


class LoopSocket:
    """One ZeroMQ socket; every whole message goes to `on_frames`."""

    def __init__(
        self,
        kind: zmq.SocketType,
        max_message_bytes: int,
        on_frames: Callable[[list[Body]], None],
        *,
        curve: CurveServer | CurveClient | None = None,
        guard: Guard | None = None,
        on_handshake_failure: Callable[[HandshakeFailure], None] | None = None,
        speaker: Speaker[Frames] = lambda _frames: None,
        on_heard_until: Callable[[float | None], None] | None = None,
    ) -> None:
        """`speaker` and `on_heard_until` as for a `LoopReader`."""
        self._on_frames = on_frames
        self._guard = guard
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.set(zmq.IPV6, 1)
        self._socket.set(zmq.TCP_KEEPALIVE, 1)
        self._socket.set(zmq.TCP_KEEPALIVE_IDLE, _PROBE_S)
        self._socket.set(zmq.TCP_KEEPALIVE_INTVL, _PROBE_S)
        self._socket.set(zmq.TCP_KEEPALIVE_CNT, DEAD_CONNECTION_MS // 1000 // _PROBE_S)
        self._socket.set(zmq.TCP_MAXRT, DEAD_CONNECTION_MS)
        self._socket.set(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if kind == zmq.ROUTER:
            self._socket.set(zmq.ROUTER_MANDATORY, 1)
        else:
            self._socket.set(zmq.IMMEDIATE, 1)
            self._socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
            self._socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        if curve is not None:
            curve.protect(self._socket)
        self._handshakes = (
            HandshakeWatch(self._socket, on_handshake_failure) if on_handshake_failure is not None else None
        )
        self._reader = LoopReader(
            self._socket,
            self._on_message,
            speaker=speaker,
            on_heard_until=on_heard_until,
        )

    @property
    def superseded(self) -> int:
        """Messages that were dropped unread, for later ones."""
        return self._reader.superseded

    def bind(self, endpoint: str) -> None:
        """Raises zmq.ZMQError where the address cannot be had."""
        self._socket.bind(endpoint)
        self._reader.look_soon()

    def connect(self, endpoint: str) -> None:
        self._socket.connect(endpoint)
        self._reader.look_soon()

    def send(self, frames: Sequence[Body]) -> SendResult:
        if self._guard is not None and not self._guard.may_be_told(bytes(frames[0])):
            return SendResult.UNREACHABLE
        try:
            for frame in frames[:-1]:
                self._send(frame, _MORE)
            self._send(frames[-1], _LAST)
        except zmq.Again:
            return SendResult.QUEUE_FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendResult.UNREACHABLE
        finally:
            self._reader.look_soon()
        return SendResult.SENT

    def _send(self, frame: Body, flags: int) -> None:
        # What is passed on as it came need not be copied again: libzmq counts who uses it.
        if isinstance(frame, memoryview) and isinstance(frame.obj, zmq.Frame):
            self._socket.send(frame.obj, flags, copy=False)
        else:
            self._socket.send(frame, flags)

    def close(self) -> None:
        if self._handshakes is not None:
            self._handshakes.close()
        self._reader.close()

    def _on_message(self, frames: list[zmq.Frame]) -> None:
        if self._guard is None or self._guard.admits(frames[0].bytes, _public_key(frames[-1])):
            self._on_frames([_taken(frame) for frame in frames])


def _public_key(frame: zmq.Frame) -> str | None:
    """Of the sender, as the authenticator called it when the connection was made."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return None  # a connection without encryption


def _taken(frame: zmq.Frame) -> Body:
    return frame.bytes if len(frame) < _COPIED_BELOW_BYTES else frame.buffer


def close_context() -> None:
    """End ZeroMQ in this process. Every socket must be closed before."""
    zmq.Context.instance().term()
