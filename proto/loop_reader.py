"""Reads one ZeroMQ socket on the asyncio loop: every whole message goes to a callback.

The descriptor of a ZeroMQ socket is edge-triggered and tells nothing but "look again": after every look
and after every send the socket is drained, or it may stay silent for ever. One object reads one socket, on
one loop, and no coroutine ever waits on it, so that a cancelled one cannot lose a message.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

PARTS_MAX: Final = 16
"""Of a message; a request to the authenticator has nine, with its route."""
_DRAINED_AT_ONCE: Final = 64
"""Messages taken before the loop gets its turn again."""
# As plain numbers: with pyzmq's own flags each call takes twice as long.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)


class LoopReader:
    def __init__(self, socket: zmq.Socket[bytes], on_message: Callable[[list[zmq.Frame]], None]) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._look_again: asyncio.Handle | None = None
        self._is_looking = False
        self._fd: int = socket.fileno()
        self._loop.add_reader(self._fd, self._drain)
        self.look_soon()

    def look_soon(self) -> None:
        """Due after whatever was done with the socket elsewhere."""
        if self._look_again is None and not self._is_looking:
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
        is_empty, self._is_looking = False, True
        try:
            is_empty = self._take_messages()
        finally:
            self._is_looking = False
            # Also after an error, which the loop logs: what waits would never be looked at again.
            if not is_empty:
                self.look_soon()

    def _take_messages(self) -> bool:
        """Some of them; True once there are none left."""
        for _ in range(_DRAINED_AT_ONCE):
            if self._socket.closed or not int(self._socket.get(_EVENTS)) & _POLLIN:
                return True
            try:
                frames = self._take_message()
            except zmq.Again:
                return True
            self._on_message(frames)
        return False

    def _take_message(self) -> list[zmq.Frame]:
        """Of one with more parts than any has, the first ones: the rest would only fill the memory."""
        frame = self._socket.recv(_NOBLOCK, copy=False)
        frames = [frame]
        while frame.more:
            frame = self._socket.recv(_NOBLOCK, copy=False)
            if len(frames) < PARTS_MAX:
                frames.append(frame)
        return frames
