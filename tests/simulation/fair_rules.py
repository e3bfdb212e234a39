"""API keys take turns: while a key has a queued job, no other key begins two."""

from collections import Counter
from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.invariants import FAIR
from simulation.ledger import Ledger

from proto.messages import FrontendView, JobState, Outcome, Start, Submit

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.frontend_actor import FrontendActor


class FairRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._queued_at: dict[bytes, dict[bytes, Counter[str]]] = {}
        """By epoch and call: how many jobs each other key has begun since it came, or its key had a turn."""
        self._begun: set[tuple[bytes, bytes]] = set()
        """Epoch and job, as of those that an earlier broker had accepted."""
        self._goes_first: set[tuple[bytes, bytes]] = set()
        self._seen: set[bytes] = set()
        """Executions."""

    def submitted(self, broker: "BrokerActor", submit: Submit) -> None:
        if submit.accepted:
            self._goes_first.add((broker.epoch, submit.claim.job_id))

    def moved(self, call: Call) -> None:
        """To another broker: if it comes back, it is new there."""
        for queued in self._queued_at.values():
            queued.pop(call.job_id, None)

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
        place = (broker.epoch, job_id)
        has_turns = place not in self._begun and place not in self._goes_first and start.claim.attempts == 1
        self._begun.add(place)
        if has_turns:
            for waiting, begun in self._queued_at.get(broker.epoch, {}).items():
                self._check(broker, self._ledger.calls[waiting], key, begun)
        self._had_a_turn(broker.epoch, key)

    def adopted(self, broker: "BrokerActor", job_id: bytes) -> None:
        """A job has begun without a START: it took over what runs."""
        self._had_a_turn(broker.epoch, self._ledger.calls[job_id].wish.key)

    def ended(self, broker: "BrokerActor", outcome: Outcome) -> None:
        """A call gets its outcome, which can be that it was tried often enough: it waits no more."""
        self._queued_at.get(broker.epoch, {}).pop(outcome.job_id, None)

    def _check(self, broker: "BrokerActor", call: Call, key: str, begun: Counter[str]) -> None:
        is_here = call.at is not None and self._ledger.world.brokers[call.at] is broker
        if call.wish.key == key or not is_here or not call.is_open or self._ledger.is_nearly_over(call):
            return
        self._ledger.count(FAIR)
        begun[key] += 1
        if begun[key] > 1:
            detail = f"{begun[key]} of {key} while {self._ledger.short(call.job_id)} of {call.wish.key} waits"
            raise self._ledger.breaks(FAIR, detail)

    def _had_a_turn(self, epoch: bytes, key: str) -> None:
        for waiting, begun in self._queued_at.get(epoch, {}).items():
            if self._ledger.calls[waiting].wish.key == key:
                begun.clear()

    def frontend_lost(self, broker: "BrokerActor", frontend: "FrontendActor") -> None:
        """What it waits for is over for the broker, or is submitted again."""
        queued = self._queued_at.get(broker.epoch, {})
        for job_id in frontend.calls:
            queued.pop(job_id, None)
