"""How far a load is, by the bytes that were read."""

import threading

from gpu_worker.engines.engine import LoadProgress


class BytesRead:
    """Counts bytes, from any thread, and tells each whole percentage once."""

    def __init__(self, total_bytes: int, on_progress: LoadProgress) -> None:
        self._total_bytes = max(1, total_bytes)
        self._on_progress = on_progress
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._what = ""
        self._told: tuple[str, int] | None = None

    def begin(self, what: str) -> None:
        """What the bytes that follow are read for."""
        with self._lock:
            self._what = what
            self._tell()

    def add(self, count: int) -> None:
        with self._lock:
            self._done_bytes += count
            self._tell()

    def _tell(self) -> None:
        told = self._what, min(100, 100 * self._done_bytes // self._total_bytes)
        if told != self._told:
            self._told = told
            self._on_progress(*told)
