"""Nobody is waited for in vain: the dead are noticed, and idle workers get the jobs that lie about."""

from typing import TYPE_CHECKING

from simulation.calls import Call
from simulation.invariants import MARGIN, MOVED, NOTICED, PROGRESS, STUCK_S
from simulation.ledger import Ledger

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor

LAST_WORDS_S = 5.0
"""Messages of the dead may be on their way for so long."""


class ProgressRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._free_since: dict[tuple[int, bytes], tuple[int, float]] = {}
        """By broker and worker: how many executions that had begun, and since when it is free and calm."""

    def look_around(self) -> None:
        world = self._ledger.world
        for broker in world.brokers:
            self._check_graves(broker)
        self._bury()
        have_somebody_idle = self._who_has_somebody_idle()
        for call in self._ledger.open_calls.values():
            if call.at is not None:
                broker = world.brokers[call.at]
                self._check_progress(call, broker, is_somebody_idle=call.at in have_somebody_idle)
                if len(world.brokers) > 1:
                    self._check_moved(call, broker)

    # --- The dead ------------------------------------------------------------------------------

    @property
    def _burial_s(self) -> float:
        return self._ledger.world.timing.peer_lost_s / MARGIN + LAST_WORDS_S + 2.0

    def _check_graves(self, broker: "BrokerActor") -> None:
        """A dead peer is unknown to each broker after `peer_lost_s`."""
        ledger, world = self._ledger, self._ledger.world
        if not world.graves or not ledger.is_calm(broker, for_s=self._burial_s):
            return
        state = broker.core.state
        known = {worker.incarnation for worker in state.workers} | set(state.frontends.known)
        for grave in world.graves:
            if world.now - max(grave.died_at, broker.born_at) > self._burial_s:
                ledger.count(NOTICED)
                if grave.incarnation in known:
                    dead_s = world.now - grave.died_at
                    raise ledger.breaks(NOTICED, f"{grave.name}, dead for {dead_s:.1f} s, by {broker.name}")

    def _bury(self) -> None:
        world = self._ledger.world
        world.graves[:] = [each for each in world.graves if world.now - each.died_at <= 3 * self._burial_s]

    # --- Calls ---------------------------------------------------------------------------------

    def _check_progress(self, call: Call, broker: "BrokerActor", *, is_somebody_idle: bool) -> None:
        """An accepted job lies about while a worker of its broker has nothing to do."""
        ledger, world = self._ledger, self._ledger.world
        runs = any(each.is_running for each in ledger.alike.get(call.identity, ()))
        is_calm = ledger.is_linked(broker, call.frontend, for_s=STUCK_S)
        if call.accepted_at is None or runs or not is_calm or not is_somebody_idle:
            call.stuck_since = None
            return
        if call.stuck_since is None:
            call.stuck_since = world.now
        ledger.count(PROGRESS)
        if world.now - max(call.stuck_since, broker.born_at, call.moved_at) > STUCK_S:
            raise ledger.breaks(PROGRESS, f"{ledger.short(call.job_id)} lies about")

    def _who_has_somebody_idle(self) -> set[int]:
        """Brokers, by index, with a worker that has been idle for a long time, and without a disturbance."""
        world = self._ledger.world
        free_since = {}
        for worker in world.workers:
            for broker in world.brokers if worker.is_free else ():
                if worker.is_calm_with(broker.index, world.now - STUCK_S):
                    of = (broker.index, worker.incarnation)
                    runs, since = self._free_since.get(of, (worker.runs, world.now))
                    free_since[of] = (worker.runs, since if runs == worker.runs else world.now)
        self._free_since = free_since
        return {index for (index, _), (_, since) in free_since.items() if world.now - since > STUCK_S}

    def _check_moved(self, call: Call, broker: "BrokerActor") -> None:
        """It does not stay with a broker that says nothing while there is another one."""
        ledger, world, frontend = self._ledger, self._ledger.world, call.frontend
        is_deaf = not broker.alive or broker.frozen or frontend.links[broker.index].cut_down
        if not is_deaf or frontend.frozen:
            call.deaf_since = None
            return
        if call.deaf_since is None:
            call.deaf_since = world.now
        patience_s = world.timing.broker_silent_s / MARGIN + LAST_WORDS_S + 1.0
        deaf_s = world.now - max(call.deaf_since, frontend.thaw_at)
        if deaf_s <= patience_s:
            return
        for other in world.brokers:
            is_old = max(other.born_at, frontend.born_at) < world.now - patience_s
            if other is not broker and is_old and ledger.is_linked(other, frontend, for_s=patience_s):
                detail = f"{ledger.short(call.job_id)} has been with {broker.name} for {deaf_s:.1f} s"
                raise ledger.breaks(MOVED, f"{detail}, and {other.name} is there")
