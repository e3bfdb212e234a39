"""A peer that speaks ZMTP 3.0 (RFC 23) by itself, and begins a message that never ends."""

import contextlib
import socket
import struct
from typing import Final

_GREETING: Final = b"\xff" + bytes(8) + b"\x7f" + bytes((3, 0)) + b"NULL".ljust(20, b"\0") + bytes(32)
_READY: Final = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
_COMMAND: Final = 4
_MORE_AND_LONG: Final = 3
_FRAME_BYTES: Final = 256 * 1024


def begin_endless_message(port: int, frames: int) -> int:
    """How many frames, each with "more to come", were taken before the connection broke."""
    frame = bytes((_MORE_AND_LONG,)) + struct.pack(">Q", _FRAME_BYTES) + bytes(_FRAME_BYTES)
    taken = 0
    with socket.create_connection(("127.0.0.1", port)) as peer, contextlib.suppress(OSError):
        peer.sendall(_GREETING + bytes((_COMMAND, len(_READY))) + _READY)
        for _ in range(frames):
            peer.sendall(frame)
            taken += 1
    return taken
