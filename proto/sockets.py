"""ZeroMQ sockets on the asyncio loop: frames arrive at a callback, sends never wait.

The descriptor of a ZeroMQ socket is edge-triggered and tells nothing but "look again": after every look
and after every send the socket is drained, or it may stay silent for ever. One object owns one socket, on
one loop, and no coroutine ever waits on it, so that a cancelled one cannot lose a message.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Final

import zmq

from proto.messages import Body

HIGH_WATER_MARK: Final = 1024
"""Messages queued for, and from, one peer: a frontend with all its calls at once. Images are far fewer,
as many as jobs that run."""
ZMTP_HEARTBEAT_MS: Final = 1000
ZMTP_TIMEOUT_MS: Final = 3000
RECONNECT_MS: Final = 100
RECONNECT_MAX_MS: Final = 1000

_DRAINED_AT_ONCE: Final = 64
"""Messages taken before the loop gets its turn again."""
_COPIED_BELOW_BYTES: Final = 64 * 1024
"""Smaller frames are copied out of libzmq's memory: cheaper than keeping a reference into it."""


class SendResult(Enum):
    SENT = auto()
    QUEUE_FULL = auto()
    """The peer takes nothing at present, or there is no connection."""
    UNREACHABLE = auto()
    """A ROUTER knows no connection of that routing identity."""


class LoopSocket:
    """One ZeroMQ socket; every whole message goes to `on_frames`."""

    def __init__(
        self, kind: zmq.SocketType, max_message_bytes: int, on_frames: Callable[[list[Body]], None]
    ) -> None:
        self._on_frames = on_frames
        self._loop = asyncio.get_running_loop()
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        self._socket.set(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.set(zmq.IPV6, 1)
        self._socket.set(zmq.HEARTBEAT_IVL, ZMTP_HEARTBEAT_MS)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, ZMTP_TIMEOUT_MS)
        if kind == zmq.ROUTER:
            self._socket.set(zmq.ROUTER_MANDATORY, 1)
        else:
            self._socket.set(zmq.IMMEDIATE, 1)
            self._socket.set(zmq.RECONNECT_IVL, RECONNECT_MS)
            self._socket.set(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._look_again: asyncio.Handle | None = None
        self._fd: int = self._socket.fileno()
        self._loop.add_reader(self._fd, self._drain)

    def bind(self, endpoint: str) -> None:
        """Raises zmq.ZMQError where the address cannot be had."""
        self._socket.bind(endpoint)
        self._look_soon()

    def connect(self, endpoint: str) -> None:
        self._socket.connect(endpoint)
        self._look_soon()

    def send(self, frames: Sequence[Body]) -> SendResult:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            return SendResult.QUEUE_FULL
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return SendResult.UNREACHABLE
        finally:
            self._look_soon()
        return SendResult.SENT

    def close(self) -> None:
        if self._socket.closed:
            return
        if self._look_again is not None:
            self._look_again.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(linger=0)

    def _look_soon(self) -> None:
        if self._look_again is None:
            self._look_again = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        for _ in range(_DRAINED_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._on_frames([_taken(frame) for frame in frames])
            except BaseException:
                # The loop logs it. What waits behind this message would never be looked at again.
                if not self._socket.closed:
                    self._look_soon()
                raise
            if self._socket.closed:
                return
        self._look_soon()


def _taken(frame: zmq.Frame) -> Body:
    return frame.bytes if len(frame) < _COPIED_BELOW_BYTES else frame.buffer


def close_context() -> None:
    """End ZeroMQ in this process. Every socket must be closed before."""
    zmq.Context.instance().term()
