"""What brokers may cancel and release, and what they have to."""

from typing import TYPE_CHECKING

from simulation.invariants import DETACHED, GRACE, MARGIN, STOP_S, UNWANTED, WANTED
from simulation.ledger import Execution, Ledger

from gpu_worker.slot import Busy
from proto.messages import WorkerView

if TYPE_CHECKING:
    from simulation.actors import WorkerActor

NEARLY_OVER_S = 4.0
"""Left of an execution's time: then its end needs no other reason."""


class WishRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def viewed(self, view: WorkerView) -> None:
        """The broker tells a worker what it wants."""
        for execution_id in view.cancel:
            self._check_cancel(self._ledger.executions[execution_id])
        for execution_id in view.release:
            execution = self._ledger.executions[execution_id]
            is_encoded = execution.worker.is_encoding(execution_id)
            if (execution.is_image or is_encoded) and self._is_calm(execution):
                self._check_wanted(execution, "is dropped")
            if is_encoded:
                execution.cancelled, execution.current_for = True, b""

    def _is_calm(self, execution: Execution) -> bool:
        return self._ledger.is_calm(execution.worker, self._ledger.world.broker)

    def _check_cancel(self, execution: Execution) -> None:
        execution.cancelled, execution.current_for = True, b""
        slot = execution.worker.session.slot
        is_in_engine = isinstance(slot, Busy) and slot.execution_id == execution.execution_id
        if not is_in_engine or not self._is_calm(execution):
            return
        self._check_wanted(execution, "is cancelled")
        if slot.deadline - execution.worker.reading() > NEARLY_OVER_S:
            self._check_detached(execution)
            self._check_grace(execution)

    def _check_wanted(self, execution: Execution, what: str) -> None:
        ledger = self._ledger
        ledger.count(WANTED)
        waiters = ledger.patient_waiters(execution)
        if waiters:
            detail = f"{ledger.short(execution.execution_id)} {what}"
            raise ledger.breaks(WANTED, f"{detail}, and {ledger.short(waiters[0].job_id)} waits")

    def _check_detached(self, execution: Execution) -> None:
        if execution.detached and not self._ledger.rivals(execution):
            raise self._ledger.breaks(DETACHED, f"{self._ledger.short(execution.execution_id)} is cancelled")

    def _check_grace(self, execution: Execution) -> None:
        """Its last waiter was lost with its frontend; a client with an idempotency key may come back."""
        ledger, identity = self._ledger, execution.identity
        is_alone = ledger.alike[identity] == [execution] and execution.epoch == ledger.world.broker.epoch
        is_orphan = identity not in ledger.waiting and ledger.was_abandoned(identity)
        if execution.claim.idempotency_hash is None or not is_orphan or not is_alone:
            return
        ledger.count(GRACE)
        for_s = ledger.world.now - ledger.last_abandoned_at[identity]
        if for_s < 0.9 * ledger.world.timing.orphan_grace_s:
            detail = f"{ledger.short(execution.execution_id)} is cancelled after {for_s:.1f} s"
            raise ledger.breaks(GRACE, detail)

    # --- What goes on --------------------------------------------------------------------------

    def look_around(self) -> None:
        for worker in self._ledger.world.workers:
            slot, engine = worker.session.slot, worker.engine
            if not isinstance(slot, Busy) or worker.running != slot.execution_id:
                continue
            execution = self._ledger.executions[slot.execution_id]
            if engine is not None and not engine.hangs and execution.identity not in self._ledger.waiting:
                self._goes_on_alone(worker, execution)

    def _goes_on_alone(self, worker: "WorkerActor", execution: Execution) -> None:
        """Nobody waits for it."""
        ledger = self._ledger
        if ledger.was_abandoned(execution.identity):
            ledger.count(GRACE)
        if execution.detached:
            ledger.count(DETACHED)
            return
        ledger.count(UNWANTED)
        world = ledger.world
        wanted_at = ledger.last_wanted_at.get(execution.identity, execution.sent_at)
        since = max(wanted_at, ledger.broker_died_at, world.broker.born_at, execution.sent_at)
        patience_s = self._patience_s(execution)
        if world.now - since <= patience_s / MARGIN:
            return
        everybody_knows = all(frontend.is_calm_since(since) for frontend in world.frontends)
        if everybody_knows and ledger.is_calm(worker, world.broker, for_s=patience_s):
            raise ledger.breaks(UNWANTED, f"{ledger.short(execution.execution_id)} on {worker.name}")

    def _patience_s(self, execution: Execution) -> float:
        """How long it may take until it is told to stop."""
        world, timing = self._ledger.world, self._ledger.world.timing
        patience_s = STOP_S + timing.rebuild_s
        is_keyed = execution.claim.idempotency_hash is not None
        if self._may_be_left_behind(execution) or (is_keyed and world.broker.born_at > 0):
            patience_s += timing.peer_lost_s + (timing.orphan_grace_s if is_keyed else 0.0)
        return patience_s

    def _may_be_left_behind(self, execution: Execution) -> bool:
        """A call for it was over because its frontend was, or the broker has never heard of its end."""
        ledger, identity = self._ledger, execution.identity
        return identity in ledger.last_abandoned_at or any(
            call.frontend not in ledger.world.frontends
            for call in ledger.calls.values()
            if call.identity == identity
        )
