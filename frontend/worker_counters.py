"""Workers' counters that never go back, whichever broker tells of them. Pure."""

from collections.abc import Collection
from typing import NamedTuple

from proto.messages import WorkerReport


class Counted(NamedTuple):
    engine_restarts: int
    outcomes_shed: int
    prompt_cache_hits: int
    prompt_cache_misses: int


class WorkerCounters:
    """The highest that was shown of each worker's present life.

    When a broker falls silent, another one may have heard a worker a moment earlier, and tell less. A counter
    that is less than before would count as one that began again.
    """

    def __init__(self) -> None:
        self._shown: dict[str, tuple[bytes, Counted]] = {}

    def of(self, report: WorkerReport) -> Counted:
        told = Counted(
            report.engine_restarts,
            report.outcomes_shed,
            report.prompt_cache_hits,
            report.prompt_cache_misses,
        )
        incarnation, shown = self._shown.get(report.worker_id, (b"", told))
        if incarnation == report.incarnation:
            told = Counted(*map(max, told, shown))
        self._shown[report.worker_id] = (report.incarnation, told)
        return told

    def forget_all_but(self, worker_ids: Collection[str]) -> None:
        for worker_id in self._shown.keys() - worker_ids:
            del self._shown[worker_id]
