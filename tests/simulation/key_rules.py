"""What a key may have: so many active jobs, and one image for an idempotency key."""

import math
from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.invariants import CALM_S, MARGIN, MISMATCH, ONE_A_KEY
from simulation.ledger import Execution, Ledger

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor

REPORTED_S = 2.0
"""What a broker has known for so long, it has counted."""


def is_other_of_key(other: Call, call: Call) -> bool:
    """The same idempotency key of the same API key, and another image."""
    hashed = call.wish.idempotency_hash
    same_key = other.wish.key == call.wish.key and other.wish.idempotency_hash == hashed
    return hashed is not None and same_key and other.identity != call.identity


class KeyRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def admitted(self, broker: "BrokerActor", job_id: bytes) -> None:
        """This broker says that it has made a job of its own of this call."""
        self._ledger.calls[job_id].admitted_by[broker.epoch] = self._ledger.world.now

    def accepted(self, call: Call, broker: "BrokerActor") -> None:
        """Its frontend has just seen that this broker has taken it."""
        self._check_limit(call)
        joins = self._joins(call)
        for other in self._ledger.open_calls.values():
            if is_other_of_key(other, call):
                self._ledger.count(MISMATCH)
                if self._is_active_beside(other, call) and not call.passed_on and not joins:
                    self._mismatch(call, other.job_id)
        if not joins:
            self._check_kept(call, broker)

    def _check_limit(self, call: Call) -> None:
        ledger = self._ledger
        rivals = {
            other.identity: other
            for other in ledger.open_calls.values()
            if other.wish.key == call.wish.key
            and other.identity != call.identity
            and other.identity not in ledger.unjudged
            and self._is_active_beside(other, call)
        }
        ledger.count(ONE_A_KEY)
        is_judged = not call.passed_on and call.identity not in ledger.unjudged and not self._joins(call)
        if is_judged and len(rivals) >= call.wish.key_limit:
            names = ", ".join(ledger.short(other.job_id) for other in rivals.values())
            raise ledger.breaks(ONE_A_KEY, f"{call.wish.key} has {names} beside {ledger.short(call.job_id)}")

    def _joins(self, call: Call) -> bool:
        """It waits for a job that its broker had already, or that has taken over what another one began: that
        one was judged when it came, and nothing is begun for this one.
        """
        if call.accepted_by in call.admitted_by:
            begun = self._ledger.alike.get(call.identity, ())
            return any(call.accepted_by in each.owners and call.accepted_by != each.epoch for each in begun)
        return any(
            other is not call and call.at in other.been_at
            for other in self._ledger.calls.values()
            if other.identity == call.identity
        )

    def _check_kept(self, call: Call, broker: "BrokerActor") -> None:
        """No image of the same idempotency key, with other parameters, lies at a worker."""
        ledger, hashed = self._ledger, call.wish.idempotency_hash
        if hashed is None:
            return
        for identity, made in ledger.delivered.items():
            if identity[:2] != (call.wish.key, hashed) or identity == call.identity:
                continue
            was_kept = made.released_at is not None and made.released_at < call.opened_at - 2.0
            if was_kept and ledger.is_still_there(made, broker):
                self._mismatch(call, made.execution_id)

    def _mismatch(self, call: Call, other: bytes) -> None:
        detail = f"{self._ledger.short(call.job_id)} is taken beside {self._ledger.short(other)}"
        raise self._ledger.breaks(MISMATCH, detail)

    def _is_active_beside(self, other: Call, call: Call) -> bool:
        """Whether the broker that took the call must have known the other one, and counted it."""
        if other is call or other.accepted_at is None or other.passed_on or other.frontend.frozen:
            return False
        if self._ledger.is_nearly_over(other) or other.opened_at > self._admitted_at(call):
            return False
        if other.at != call.at:  # Brokers know of each other's jobs only what workers run.
            return self._is_running_beside(other, call)
        if other.at is None or other.frontend.lost_at.get(other.at, -1.0) >= other.accepted_at:
            return False
        settled_at = self._ledger.world.now - 2 * CALM_S
        is_settled = other.frontend.is_calm_with(other.at, settled_at) and other.moved_at < settled_at
        has_moved = len(other.been_at) > 1 or len(call.been_at) > 1
        return is_settled or (other.accepted_by == call.accepted_by and not has_moved)

    def _admitted_at(self, call: Call) -> float:
        """When its broker took it, which its frontend may see much later: who came since is judged itself."""
        return call.admitted_by.get(call.accepted_by, math.inf)

    def _is_running_beside(self, other: Call, call: Call) -> bool:
        """Whether the broker that took the call knew that a worker was running the other one, for good."""
        if call.at is None:
            return False
        ledger, known_since = self._ledger, call.opened_at - REPORTED_S
        broker = ledger.world.brokers[call.at]
        return any(
            execution.is_drawing
            and call.accepted_by not in execution.cancelled_by
            and execution.reported_to.get(call.accepted_by, known_since) < known_since
            and not self._is_about_to_end(execution, broker)
            and ledger.is_linked(broker, execution.worker)
            for execution in ledger.alike.get(other.identity, ())
        )

    def _is_about_to_end(self, execution: Execution, broker: "BrokerActor") -> bool:
        """No broker has wanted it for so long that this one tells so to its worker with its next view."""
        unwanted_since = execution.unwanted_to.get(broker.epoch)
        may_go_on = broker.epoch in execution.owners or execution.claim.idempotency_hash is not None
        if may_go_on or unwanted_since is None:
            return False
        return broker.reading() - unwanted_since > MARGIN * self._ledger.world.timing.rebuild_s
