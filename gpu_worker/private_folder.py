"""A folder in a place that all users share, for one user alone."""

import os
import stat
from pathlib import Path

from gpu_worker.engines.engine import ModelUnusable


def claim_private_folder(folder: Path) -> None:
    """Make the folder, or see to it that nobody else can have put anything into the one that is there.

    Raises:
        ModelUnusable: it cannot be made, is no folder, belongs to somebody else, or others may write to it.
    """
    try:
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise _unusable(folder, str(error)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(folder, "it is not a folder")
    if found.st_uid != os.geteuid():
        raise _unusable(folder, f"it belongs to user {found.st_uid}, not to user {os.geteuid()}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _unusable(folder, f"others may write to it, its mode is {stat.S_IMODE(found.st_mode):04o}")


def _unusable(folder: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{folder}: cannot hold the embedded model: {why}; expected is a folder that only this user may"
        " write to, or another --cache-dir (FLUX_WORKER_CACHE_DIR)"
    )
