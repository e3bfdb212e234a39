"""Whether the files of a prepared folder are still what its manifest says. Reads all of them."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, BytesDone, FileEntry, Manifest, file_entry

_THREADS_MAX: Final = 4


def folder_entries(folder: Path) -> dict[str, FileEntry]:
    """A manifest's entries for all files in this folder but hidden ones and itself. Raises `OSError`."""
    paths = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    return {
        path.as_posix(): file_entry(folder / path)
        for path in paths
        if path.name != MANIFEST_NAME and not any(part.startswith(".") for part in path.parts)
    }


def check_digests(folder: Path, manifest: Manifest, on_bytes: BytesDone) -> None:
    """Hash all files of the manifest, a few at once.

    `on_bytes` is called from several threads, by one at a time.

    Raises:
        ModelUnusable: files that are missing, unreadable or other than listed; the text names all of them.
    """
    lock = threading.Lock()

    def one_at_a_time(count: int) -> None:
        with lock:
            on_bytes(count)

    # hashlib lets other threads run meanwhile.
    with ThreadPoolExecutor(min(_THREADS_MAX, os.cpu_count() or 1)) as pool:
        found = pool.map(
            lambda item: _problem(folder, item[0], item[1], one_at_a_time), manifest.files.items()
        )
        problems = [problem for problem in found if problem]
    if problems:
        raise ModelUnusable(f"{folder.absolute()}: {'; '.join(problems)}")


def _problem(folder: Path, path: str, listed: FileEntry, on_bytes: BytesDone) -> str:
    try:
        found = file_entry(folder / path, on_bytes)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if found.size_bytes != listed.size_bytes:
        return f"{path} has {found.size_bytes} bytes, {listed.size_bytes} are listed in {MANIFEST_NAME}"
    if found.sha256 != listed.sha256:
        return f"{path} has another SHA-256 than is listed in {MANIFEST_NAME}: it was changed or is damaged"
    return ""
