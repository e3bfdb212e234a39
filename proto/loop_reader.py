"""Reads one ZeroMQ socket on the asyncio loop: every whole message goes to a callback.

The descriptor of a ZeroMQ socket is edge-triggered and tells nothing but "look again": after every look
and after every send the socket is drained, or it may stay silent for ever. One object reads one socket, on
one loop, and no coroutine ever waits on it, so that a cancelled one cannot lose a message.

A socket is emptied before anything of what it had is handled: only then is it known who has said something
meanwhile, and which of it is superseded.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import zmq

from proto.backlog import Backlog, Speaker

PARTS_MAX: Final = 16
"""Of a message; a request to the authenticator has nine, with its route."""
HANDLED_AT_ONCE: Final = 64
"""Messages handled before the loop gets its turn again."""
_TAKEN_AT_ONCE: Final = 1024
"""And taken out of the socket."""
# As plain numbers: with pyzmq's own flags each call takes twice as long.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_NOBLOCK: Final = int(zmq.NOBLOCK)

Frames = list[zmq.Frame]


class LoopReader:
    def __init__(
        self,
        socket: zmq.Socket[bytes],
        on_message: Callable[[Frames], None],
        *,
        speaker: Speaker[Frames] = lambda _frames: None,
        on_heard_until: Callable[[float | None], None] | None = None,
    ) -> None:
        """`speaker` as for a `Backlog`.

        `on_heard_until` is told when more has come than one turn of the loop handles: the instant, on the
        loop's clock, until which all has been handled; and None when that is all that has come.
        """
        self._socket = socket
        self._on_message = on_message
        self._backlog = Backlog(speaker)
        self._on_heard_until = on_heard_until
        self._loop = asyncio.get_running_loop()
        self._heard_until = self._emptied_at = self._loop.time()
        self._is_behind = False
        """Of what has come, some has waited for more than one turn."""
        self._is_emptying = False
        self._is_small = True
        """All that the socket had last fits into one turn."""
        self._must_look = True
        """It was not emptied, or something was done with it since, which may have swallowed a sign."""
        self._look_again: asyncio.Handle | None = None
        self._is_looking = False
        self._fd: int = socket.fileno()
        self._loop.add_reader(self._fd, self._drain)
        self.look_soon()

    @property
    def superseded(self) -> int:
        """Messages that were dropped for a later one."""
        return self._backlog.superseded

    def look_soon(self) -> None:
        """Due after whatever was done with the socket elsewhere."""
        self._must_look = True
        if not self._is_looking:
            self._take_turn_soon()

    def _take_turn_soon(self) -> None:
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
        # What is closed lives until the garbage collector comes, and that may be megabytes.
        self._backlog.clear()

    def _drain(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        is_done, self._is_looking = False, True
        try:
            is_done = self._take_turn()
        finally:
            self._is_looking = False
            # Also after an error, which the loop logs: what waits would never be looked at again.
            if not is_done:
                self._take_turn_soon()

    def _take_turn(self) -> bool:
        """Empty the socket, or handle some of what it had; True if there is nothing left to do."""
        if not self._backlog:
            self._heard_until, self._is_emptying = self._emptied_at, True
        if self._is_emptying:
            self._is_emptying = not self._empty_socket()
            if self._is_emptying:
                return False
            self._is_small = not self._must_look and len(self._backlog) <= HANDLED_AT_ONCE
            if not self._is_small:
                self._tell(self._heard_until)
        self._handle_some()
        if self._is_small and self._is_behind:
            self._tell(None)
        return self._socket.closed or not (self._backlog or self._must_look)

    def _empty_socket(self) -> bool:
        """Whether it is empty now, or as much was taken as may lie here."""
        for _ in range(_TAKEN_AT_ONCE):
            if self._socket.closed or self._backlog.is_full:
                self._must_look = True
                return True
            if not int(self._socket.get(_EVENTS)) & _POLLIN:
                self._must_look = False
                self._emptied_at = self._loop.time()
                return True
            try:
                frames = self._take_message()
            except zmq.Again:
                continue
            self._backlog.add(frames, sum(map(len, frames)))
        return False

    def _tell(self, heard_until: float | None) -> None:
        self._is_behind = heard_until is not None
        if self._on_heard_until is not None:
            self._on_heard_until(heard_until)

    def _handle_some(self) -> None:
        for _ in range(min(HANDLED_AT_ONCE, len(self._backlog))):
            if self._socket.closed:
                return
            self._on_message(self._backlog.take())

    def _take_message(self) -> Frames:
        """Of one with more parts than any has, the first ones: the rest would only fill the memory."""
        frame = self._socket.recv(_NOBLOCK, copy=False)
        frames = [frame]
        while frame.more:
            frame = self._socket.recv(_NOBLOCK, copy=False)
            if len(frames) < PARTS_MAX:
                frames.append(frame)
        return frames
