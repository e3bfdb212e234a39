"""What workers hold: every outcome until it is released, and some images longer."""

from typing import TYPE_CHECKING

from simulation.invariants import HELD, KEPT
from simulation.ledger import Ledger

from proto.messages import Outcome, WorkerReport, WorkerView

if TYPE_CHECKING:
    from simulation.worker_actor import WorkerActor


class HeldRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._owed: dict[bytes, dict[bytes, float]] = {}
        """By worker: since when it has to list what, on its clock."""
        self._kept: dict[bytes, dict[bytes, float]] = {}
        """Likewise, for repeats, the oldest first."""

    def ended(self, worker: "WorkerActor", outcome: Outcome) -> None:
        """It sends an outcome, for the first time or again."""
        ledger, execution = self._ledger, self._ledger.executions[outcome.execution_id]
        if execution.ended_at is not None:
            return
        execution.ended_at, execution.is_image = ledger.world.now, outcome.image is not None
        self._owed.setdefault(worker.incarnation, {})[outcome.execution_id] = worker.reading()
        if execution.is_image:
            ledger.world.stats.images += 1
            ledger.held_bytes[worker.incarnation] += len(outcome.body)

    def viewed(self, worker: "WorkerActor", view: WorkerView, spared: set[bytes]) -> None:
        """A worker reads what a broker wants. `spared`: what it leaves as it is, for another one."""
        owed = self._owed.setdefault(worker.incarnation, {})
        kept = self._kept.setdefault(worker.incarnation, {})
        for execution_id in view.keep:
            if execution_id not in spared and owed.pop(execution_id, None) is not None:
                self._released(execution_id)
                if self._ledger.executions[execution_id].is_image:
                    kept[execution_id] = worker.reading()
        while len(kept) > self._ledger.world.limits.kept_max:
            del kept[next(iter(kept))]  # For good, even if the one that it made room for goes soon.
        for execution_id in set(view.release) - spared:
            for listed in (owed, kept):
                if listed.pop(execution_id, None) is not None:
                    self._released(execution_id)

    def _released(self, execution_id: bytes) -> None:
        execution = self._ledger.executions[execution_id]
        if execution.released_at is None:
            execution.released_at = self._ledger.world.now

    def reported(self, worker: "WorkerActor", report: WorkerReport) -> None:
        """Where there is plenty of room, nothing gives way but by its age."""
        ledger, limits = self._ledger, self._ledger.world.limits
        is_tight = ledger.held_bytes[worker.incarnation] > limits.held_bytes_max / 2
        if report.outcomes_shed or is_tight:
            return
        listed, reading = {outcome.execution_id: outcome for outcome in report.held}, worker.reading()
        for execution_id, since in self._owed.get(worker.incarnation, {}).items():
            ledger.count(HELD)
            if execution_id not in listed and reading < since + limits.held_age_max_s:
                raise ledger.breaks(HELD, f"{ledger.short(execution_id)} of {worker.name}")
        for execution_id, since in self._kept.get(worker.incarnation, {}).items():
            if reading >= since + limits.kept_age_max_s:
                continue
            ledger.count(KEPT)
            if execution_id not in listed or not listed[execution_id].released:
                raise ledger.breaks(KEPT, f"{ledger.short(execution_id)} of {worker.name}")
