"""Files that an operator names in a setting: keys and certificates."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 1024 * 1024
"""Far above any of these files: whoever names a device or a model by mistake is to hear so."""


class FileUnusable(Exception):
    """The text names the file, the place in it where it can, and what is expected. It quotes no secret."""


@dataclass(frozen=True, slots=True)
class OperatorFile:
    path: Path
    content: bytes
    mode: int
    """Its permissions."""

    def require_secrecy(self, why: str) -> None:
        """Raises `FileUnusable` if others may read it. `why` they must not: "holds …"."""
        if self.mode & stat.S_IROTH:
            raise FileUnusable(
                f"{self.path}: {why}, and everybody may read it (mode {self.mode:04o}): chmod 0640"
            )


def read_file(path: Path) -> OperatorFile:
    """Raises `FileUnusable`: it cannot be read, is no file of a sensible size, or others may change it."""
    status = checked_status(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    mode = stat.S_IMODE(status.st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FileUnusable(f"{path}: others may change it (mode {mode:04o}): chmod go-w")
    return OperatorFile(path, content, mode)


def checked_status(path: Path) -> os.stat_result:
    """Raises `FileUnusable` if this is no file of a sensible size."""
    try:
        status = path.stat()
    except OSError as error:
        raise FileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):  # To open a pipe would wait for its other end.
        raise FileUnusable(f"{path}: is no file")
    if status.st_size > MAX_BYTES:
        raise FileUnusable(f"{path}: is larger than {MAX_BYTES} bytes")
    return status
