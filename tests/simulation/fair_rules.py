"""API keys take turns: while a key has a queued job, no other key begins two."""

from collections import Counter
from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.invariants import FAIR
from simulation.ledger import Ledger

from proto.messages import FrontendReport, FrontendView, JobState, Start

if TYPE_CHECKING:
    from simulation.actors import BrokerActor, FrontendActor


class FairRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queued_at: dict[bytes, dict[bytes, Counter[str]]] = {}
        """By epoch and call: how many jobs each other key has begun since it came, or its key had a turn."""
        self._begun: set[tuple[bytes, bytes]] = set()
        """Epoch and job."""
        self._seen: set[bytes] = set()
        """Executions."""

    def told(self, view: FrontendView) -> None:
        queued = self._queued_at.setdefault(view.epoch, {})
        for status in view.jobs:
            if status.state is JobState.QUEUED:
                queued.setdefault(status.job_id, Counter())
            elif queued.pop(status.job_id, None) is not None:
                self._had_a_turn(view.epoch, self._ledger.calls[status.job_id].wish.key)

    def started(self, broker: "BrokerActor", start: Start) -> None:
        key, job_id = start.claim.key_fingerprint, start.claim.job_id
        if start.execution_id in self._seen:
            return
        self._seen.add(start.execution_id)
        is_first = (broker.epoch, job_id) not in self._begun
        self._begun.add((broker.epoch, job_id))
        if is_first and start.claim.attempts == 1 and not self._had_been_accepted(broker, job_id):
            for waiting, begun in self._queued_at.get(broker.epoch, {}).items():
                self._check(self._ledger.calls[waiting], key, begun)
        self._had_a_turn(broker.epoch, key)

    def _check(self, call: Call, key: str, begun: Counter[str]) -> None:
        if call.wish.key == key or not call.is_open or self._ledger.is_nearly_over(call):
            return
        self._ledger.count(FAIR)
        begun[key] += 1
        if begun[key] > 1:
            detail = f"{begun[key]} of {key} while {self._ledger.short(call.job_id)} of {call.wish.key} waits"
            raise self._ledger.breaks(FAIR, detail)

    def _had_been_accepted(self, broker: "BrokerActor", job_id: bytes) -> bool:
        """By an earlier broker: then it goes first, whoever has the turn."""
        call = self._ledger.calls.get(job_id)
        return call is None or call.submitted_accepted == broker.epoch

    def _had_a_turn(self, epoch: bytes, key: str) -> None:
        for waiting, begun in self._queued_at.get(epoch, {}).items():
            if self._ledger.calls[waiting].wish.key == key:
                begun.clear()

    def moved(self, broker: "BrokerActor", report: FrontendReport) -> None:
        """Its calls that wait at another broker now wait here no more."""
        queued = self._queued_at.get(broker.epoch, {})
        for job_id in report.elsewhere:
            queued.pop(job_id, None)

    def frontend_lost(self, broker: "BrokerActor", frontend: "FrontendActor") -> None:
        """What it waits for is over for the broker, or is submitted again."""
        queued = self._queued_at.get(broker.epoch, {})
        for job_id in frontend.calls:
            queued.pop(job_id, None)
