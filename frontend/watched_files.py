"""Files that are read again when they change, or when somebody asks for it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from frontend.operator_files import FileUnusable

log = structlog.get_logger()

_Signature = tuple[tuple[int, ...] | None, ...]
"""For each file what changes with its content or its permissions; None if it is not there."""


class WatchedFiles:
    """Files that are of use only together."""

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        """`what` they hold, for the log. `load` raises `FileUnusable`, and leaves then everything as it was.

        Raises:
            FileUnusable: they cannot be used now.
        """
        self._what = what
        self._paths = paths
        self._load = load
        self._tried = self._last_seen = self._signature()
        load()

    def look(self) -> None:
        """Read them again if they have changed since they were read, and not since the last look: whoever
        replaces several files needs some time for it."""
        found, before = self._signature(), self._last_seen
        self._last_seen = found
        if found != self._tried and found == before:
            self.read_again()

    def read_again(self) -> None:
        """Whatever they look like. What cannot be used changes nothing, and is logged once."""
        self._tried = self._last_seen = self._signature()
        try:
            self._load()
        except FileUnusable as unusable:
            log.error("files not usable, the old ones count", what=self._what, problem=str(unusable))
        else:
            log.info("files read again", what=self._what)

    def _signature(self) -> _Signature:
        return tuple(map(_signature, self._paths))


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
