"""Files that are read again: when they change, and when a signal asks for it."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from proto.signals import on_reload_signal

LOOK_S: Final = 2.0

_Signature = tuple[tuple[int, ...] | None, ...]
"""What changes with the content or permissions of a file, for each; None if it is not there."""


def keep_fresh(files: Sequence[Path], read_again: Callable[[], None]) -> None:
    """Read them again at SIGHUP and when they have changed, for as long as the event loop runs."""
    if files:
        on_reload_signal(read_again)
        FileWatch(files, read_again)


class FileWatch:
    """Calls back once files have changed, and stayed the same for one look: a list that is being written
    must not cut off those who are to stand at its end."""

    def __init__(self, files: Sequence[Path], on_change: Callable[[], None], look_s: float = LOOK_S) -> None:
        self._files = files
        self._on_change = on_change
        self._look_s = look_s
        self._told = self._seen = self._signature()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(look_s, self._look)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._look_s, self._look)
        found, before = self._signature(), self._seen
        self._seen = found
        if found != self._told and found == before:
            self._told = found
            self._on_change()

    def _signature(self) -> _Signature:
        return tuple(map(_signature, self._files))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns
