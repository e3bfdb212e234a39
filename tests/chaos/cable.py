"""A cable between peers and their broker that breaks in the middle of a frame."""

import contextlib
import socket
import struct
import threading
from typing import Final, Self

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: closing sends RST, and takes back what has not left."""
_CHUNK_BYTES: Final = 16 * 1024


class Cable:
    """What peers connect to instead of their broker."""

    def __init__(self, listens_on: int, broker_port: int) -> None:
        self.breaks = 0
        self._broker_port = broker_port
        self._lock = threading.Lock()
        self._left_bytes: int | None = None
        self._listener = socket.create_server(("127.0.0.1", listens_on))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="cable")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for end in self._ends:
            _reset(end)
        for thread in self._threads:
            thread.join()

    def break_after(self, size_bytes: int) -> None:
        """Once: when so much more has come from the peers."""
        with self._lock:
            self._left_bytes = size_bytes

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return  # It was closed.
            try:
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
            except OSError:
                peer.close()
                continue
            self._ends += (peer, broker)
            for source, target, counts in ((peer, broker, True), (broker, peer, False)):
                thread = threading.Thread(target=self._carry, args=(source, target, counts), name="cable")
                thread.start()
                self._threads.append(thread)

    def _carry(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK_BYTES):
                passes = self._passes(len(chunk)) if counts else len(chunk)
                target.sendall(chunk[:passes])
                if passes < len(chunk):
                    break
        _reset(source)
        _reset(target)

    def _passes(self, size_bytes: int) -> int:
        """How many of these bytes."""
        with self._lock:
            if self._left_bytes is None or size_bytes <= self._left_bytes:
                self._left_bytes = None if self._left_bytes is None else self._left_bytes - size_bytes
                return size_bytes
            passes, self._left_bytes = self._left_bytes, None
            self.breaks += 1
            return passes


def _reset(end: socket.socket) -> None:
    """Also for a thread that waits for it."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RDWR)
    end.close()
