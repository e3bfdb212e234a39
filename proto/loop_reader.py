"""Reads one ZeroMQ socket on the asyncio loop: every whole message goes to a callback.

The descriptor of a ZeroMQ socket is edge-triggered and tells nothing but "look again": after every look
and after every send the socket is drained, or it may stay silent for ever. One object reads one socket, on
one loop, and no coroutine ever waits on it, so that a cancelled one cannot lose a message.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

_DRAINED_AT_ONCE: Final = 64
"""Messages taken before the loop gets its turn again."""


class LoopReader:
    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[zmq.Frame]], None]) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._look_again: asyncio.Handle | None = None
        self._fd: int = socket.fileno()
        self._loop.add_reader(self._fd, self._drain)
        self.look_soon()

    def look_soon(self) -> None:
        """Due after whatever was done with the socket elsewhere."""
        if self._look_again is None:
            self._look_again = self._loop.call_soon(self._drain)

    def close(self) -> None:
        """Read no more, and close the socket."""
        if self._socket.closed:
            return
        if self._look_again is not None:
            self._look_again.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(linger=0)

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
                self._on_message(frames)
            except BaseException:
                # The loop logs it. What waits behind this message would never be looked at again.
                if not self._socket.closed:
                    self.look_soon()
                raise
            if self._socket.closed:
                return
        self.look_soon()
