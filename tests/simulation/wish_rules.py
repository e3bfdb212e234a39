"""What brokers may cancel and release, and what they have to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.calls import Identity, identity_of
from simulation.invariants import DETACHED, FOREIGN, GRACE, LET_GO, MARGIN, STOP_S, UNWANTED, WANTED
from simulation.ledger import Execution, Ledger

from gpu_worker.slot import Busy
from proto.messages import FrontendReport, Submit, WorkerReport, WorkerView

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.worker_actor import WorkerActor

NEARLY_OVER_S = 4.0
"""Left of an execution's time: then its end needs no other reason."""


@dataclass(slots=True)
class LetGo:
    """What a broker was told of a call that waits elsewhere."""

    seq: int
    """Of the latest report that says so."""
    at: float
    """When it heard the first one, on its clock."""
    current: set[bytes]
    """What it had begun for it, and counted on until then. What it did not want any more is as another's."""


class WishRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._wanted_elsewhere: dict[tuple[bytes, bytes], set[bytes]] = {}
        """By epoch and worker: what its latest report said that others want."""

        self._let_go: dict[tuple[bytes, Identity], LetGo] = {}
        """By epoch and identity."""
        self._submitted: dict[tuple[bytes, Identity], int] = {}
        """Likewise: the number of its latest SUBMIT."""

    def reported(self, broker: "BrokerActor", report: WorkerReport) -> None:
        running = () if report.running is None else (report.running,)
        listed = (*running, *report.held)
        named = {each.execution_id for each in listed if each.wanted_elsewhere}
        self._wanted_elsewhere[(broker.epoch, report.incarnation)] = named
        for each in listed:
            unwanted_to = self._ledger.executions[each.execution_id].unwanted_to
            if each.wanted_elsewhere:
                unwanted_to.pop(broker.epoch, None)
            else:
                unwanted_to.setdefault(broker.epoch, broker.reading())
        if report.running is not None and report.running.claim.detach:
            self._ledger.executions[report.running.execution_id].detached_at.add(broker.epoch)

    def submitted(self, broker: "BrokerActor", submit: Submit) -> None:
        """The call waits here, perhaps again."""
        of = (broker.epoch, identity_of(submit.claim))
        self._submitted[of] = max(submit.seq, self._submitted.get(of, 0))
        if of in self._let_go and submit.seq > self._let_go[of].seq:
            del self._let_go[of]

    def left(self, broker: "BrokerActor", report: FrontendReport) -> None:
        """A frontend tells a broker which of its calls wait elsewhere now."""
        for job_id in report.elsewhere:
            call = self._ledger.calls.get(job_id)
            if call is None or call.wish.idempotency_hash is not None:  # Others may wait for it.
                continue
            of = (broker.epoch, call.identity)
            if report.seq < self._submitted.get(of, 0):
                continue
            begun = self._ledger.alike.get(call.identity, ())
            current = {each.execution_id for each in begun if each.current_for == broker.epoch}
            told = self._let_go.setdefault(of, LetGo(report.seq, broker.reading(), current))
            told.seq = max(told.seq, report.seq)
            if any(each.epoch == broker.epoch for each in begun):
                self._ledger.count(LET_GO)

    def viewed(self, broker: "BrokerActor", view: WorkerView, worker: "WorkerActor") -> None:
        """The broker tells a worker what it wants."""
        self._check_foreign(broker, view, worker)
        self._check_let_go(broker, view)
        self._check_still_wanted(broker, view)
        for execution_id in view.cancel:
            self._check_cancel(broker, self._ledger.executions[execution_id])
        for execution_id in view.release:
            execution = self._ledger.executions[execution_id]
            is_encoded = execution.worker.is_encoding(execution_id)
            if (execution.is_image or is_encoded) and self._ledger.is_linked(broker, execution.worker):
                self._check_wanted(broker, execution, "is dropped")
            if is_encoded:
                self._ask_for_its_end(broker, execution)
        for execution_id in (*view.keep, *view.release):
            # Its job is over: a repeat may get an earlier image.
            self._is_no_longer_current(broker, self._ledger.executions[execution_id])

    def _check_foreign(self, broker: "BrokerActor", view: WorkerView, worker: "WorkerActor") -> None:
        """It leaves alone what it has not begun or adopted, and another broker wants."""
        ledger = self._ledger
        for execution_id in self._wanted_elsewhere.get((broker.epoch, worker.incarnation), ()):
            if broker.epoch in ledger.executions[execution_id].owners:
                continue
            ledger.count(FOREIGN)
            for what in ("cancel", "release", "keep"):
                if execution_id in getattr(view, what):
                    detail = f"{broker.name} would {what} {ledger.short(execution_id)} of {worker.name}"
                    raise ledger.breaks(FOREIGN, detail)

    def _check_let_go(self, broker: "BrokerActor", view: WorkerView) -> None:
        """What was begun for a call that has moved is left alone until its new broker can want it."""
        ledger = self._ledger
        for execution_id in (*view.cancel, *view.release):
            execution = ledger.executions[execution_id]
            if execution.ended_at is not None and not execution.is_image:
                continue  # A failure, which nobody needs.
            told = self._let_go.get((broker.epoch, execution.identity))
            if told is None or execution_id not in told.current or execution.identity not in ledger.waiting:
                continue
            if broker.reading() - told.at < MARGIN * ledger.world.timing.rebuild_s:
                detail = f"{broker.name} ends {ledger.short(execution_id)}"
                raise ledger.breaks(LET_GO, detail)

    def _check_still_wanted(self, broker: "BrokerActor", view: WorkerView) -> None:
        """It wants nothing that nobody waits for, once the frontends have told it so."""
        ledger = self._ledger
        for execution_id in view.wanted:
            execution = ledger.executions[execution_id]
            identity = execution.identity
            if identity in ledger.waiting or execution.is_detached or self._may_be_left_behind(execution):
                continue
            if self._is_detached_at(broker, execution):
                continue
            ledger.count(UNWANTED)
            told_s = ledger.world.now - max(ledger.last_wanted_at.get(identity, 0.0), broker.born_at)
            everybody = ledger.world.frontends
            if told_s > STOP_S / MARGIN and ledger.is_linked(broker, *everybody, for_s=told_s):
                raise ledger.breaks(UNWANTED, f"{broker.name} wants {ledger.short(execution_id)}")

    def _is_detached_at(self, broker: "BrokerActor", execution: Execution) -> bool:
        """By a call that its broker alone knows of: what was stopping then was not told of it any more."""
        return any(
            call.wish.detach and broker.index in call.been_at
            for call in self._ledger.calls.values()
            if call.identity == execution.identity
        )

    @staticmethod
    def _ask_for_its_end(broker: "BrokerActor", execution: Execution) -> None:
        execution.cancelled_by.add(broker.epoch)
        WishRules._is_no_longer_current(broker, execution)

    @staticmethod
    def _is_no_longer_current(broker: "BrokerActor", execution: Execution) -> None:
        if execution.current_for == broker.epoch:
            execution.current_for = b""

    def _check_cancel(self, broker: "BrokerActor", execution: Execution) -> None:
        self._ask_for_its_end(broker, execution)
        slot = execution.worker.session.slot
        is_in_engine = isinstance(slot, Busy) and slot.execution_id == execution.execution_id
        if not is_in_engine or not self._ledger.is_linked(broker, execution.worker):
            return
        self._check_wanted(broker, execution, "is cancelled")
        if slot.deadline - execution.worker.reading() > NEARLY_OVER_S:
            self._check_detached(broker, execution)
            self._check_grace(broker, execution)

    def _check_wanted(self, broker: "BrokerActor", execution: Execution, what: str) -> None:
        ledger = self._ledger
        ledger.count(WANTED)
        waiters = ledger.patient_waiters(execution, broker)
        if waiters:
            detail = f"{ledger.short(execution.execution_id)} {what}"
            raise ledger.breaks(WANTED, f"{detail}, and {ledger.short(waiters[0].job_id)} waits")

    def _check_detached(self, broker: "BrokerActor", execution: Execution) -> None:
        """By one that knows of it. What others cannot know yet they want to end in vain.

        Nor by one that counts on another of the same call, of whose end it has not heard, or on its image
        (PROTOCOL.md §7).
        """
        has_image = any(
            broker.epoch in other.image_told_to for other in self._ledger.alike[execution.identity]
        )
        is_known = broker.epoch in execution.detached_at and not self._ledger.rivals(execution)
        if is_known and not has_image and not self._ledger.counts_on_another(broker, execution):
            raise self._ledger.breaks(DETACHED, f"{self._ledger.short(execution.execution_id)} is cancelled")

    def _check_grace(self, broker: "BrokerActor", execution: Execution) -> None:
        """Its last waiter was lost with its frontend; a client with an idempotency key may come back."""
        ledger, identity = self._ledger, execution.identity
        is_alone = ledger.alike[identity] == [execution] and execution.epoch == broker.epoch
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
        if execution.is_detached:
            ledger.count(DETACHED)
            return
        ledger.count(UNWANTED)
        world = ledger.world
        wanted_at = ledger.last_wanted_at.get(execution.identity, execution.sent_at)
        born_at = max(broker.born_at for broker in world.brokers)
        since = max(wanted_at, ledger.broker_died_at, born_at, execution.sent_at)
        patience_s = self._patience_s(execution)
        if world.now - since <= patience_s / MARGIN:
            return
        living = [broker for broker in world.brokers if broker.alive]
        everybody_knows = all(frontend.is_calm_since(since) for frontend in world.frontends)
        if living and everybody_knows and ledger.is_calm(worker, *living, for_s=patience_s):
            raise ledger.breaks(UNWANTED, f"{ledger.short(execution.execution_id)} on {worker.name}")

    def _patience_s(self, execution: Execution) -> float:
        """How long it may take until it is told to stop."""
        world, timing = self._ledger.world, self._ledger.world.timing
        patience_s = STOP_S + timing.rebuild_s
        if len(world.brokers) > 1:  # The one that wanted it last may be gone; then others wait for claims.
            patience_s += timing.broker_silent_s + timing.heartbeat_interval_s + timing.rebuild_s
        is_keyed = execution.claim.idempotency_hash is not None
        is_any_young = any(broker.born_at > 0 for broker in world.brokers)
        if self._may_be_left_behind(execution) or (is_keyed and is_any_young):
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
