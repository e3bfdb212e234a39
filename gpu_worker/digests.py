"""Whether the files of a prepared folder are those of its manifest, byte by byte."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import Manifest, file_entry

_THREADS: Final = 4
"""hashlib releases the interpreter lock; more of them would only wait for the disk."""


def check_digests(folder: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> None:
    """Hash all files that the manifest lists; `on_bytes` gets how many bytes were read since the last call.

    Raises:
        ModelUnusable: a file is missing, cannot be read, or is another one; the text names it.
    """

    def check(name: str) -> None:
        try:
            found = file_entry(folder / name, on_bytes)
        except OSError as error:
            raise ModelUnusable(f"{folder / name}: cannot be read: {error.strerror}") from error
        if found != manifest.files[name]:
            raise ModelUnusable(f"{folder / name}: not the file that the manifest lists: it has changed")

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(check, manifest.files):
            pass
