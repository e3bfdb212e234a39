"""Nobody is waited for in vain: the dead are noticed, and idle workers get the jobs that lie about."""

from simulation.invariants import MARGIN, NOTICED, PROGRESS, STUCK_S
from simulation.ledger import Ledger

LAST_WORDS_S = 5.0
"""Messages of the dead may be on their way for so long."""


class ProgressRules:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._free_since: dict[bytes, tuple[int, float]] = {}
        """By worker: how many executions it had begun, and since when it has been free and calm."""

    def look_around(self) -> None:
        self._check_graves()
        self._check_calls()

    def _check_graves(self) -> None:
        """A dead peer is unknown to the broker after `peer_lost_s`."""
        ledger, world, broker = self._ledger, self._ledger.world, self._ledger.world.broker
        patience_s = world.timing.peer_lost_s / MARGIN + LAST_WORDS_S + 2.0
        if not world.graves or not ledger.is_calm(broker, for_s=patience_s):
            return
        state = broker.core.state
        known = {worker.incarnation for worker in state.workers} | set(state.frontends.known)
        for grave in list(world.graves):
            if world.now - max(grave.died_at, broker.born_at) > patience_s:
                ledger.count(NOTICED)
                if grave.incarnation in known:
                    raise ledger.breaks(NOTICED, f"{grave.name}, dead for {world.now - grave.died_at:.1f} s")
                if world.now - grave.died_at > 3 * patience_s:
                    world.graves.remove(grave)

    def _check_calls(self) -> None:
        """An accepted job lies about while a worker has nothing to do."""
        ledger, world, broker = self._ledger, self._ledger.world, self._ledger.world.broker
        is_somebody_idle = self._is_somebody_idle()
        for call in ledger.open_calls.values():
            runs = any(each.is_running for each in ledger.alike.get(call.identity, ()))
            is_calm = ledger.is_calm(broker, call.frontend, for_s=STUCK_S)
            if call.accepted_at is None or runs or not is_calm or not is_somebody_idle:
                call.stuck_since = None
                continue
            if call.stuck_since is None:
                call.stuck_since = world.now
            ledger.count(PROGRESS)
            if world.now - max(call.stuck_since, broker.born_at) > STUCK_S:
                raise ledger.breaks(PROGRESS, f"{ledger.short(call.job_id)} lies about")

    def _is_somebody_idle(self) -> bool:
        """For a long time, and without a disturbance."""
        world = self._ledger.world
        free_since = {}
        for worker in world.workers:
            if worker.is_free and worker.is_calm_since(world.now - STUCK_S):
                runs, since = self._free_since.get(worker.incarnation, (worker.runs, world.now))
                free_since[worker.incarnation] = (worker.runs, since if runs == worker.runs else world.now)
        self._free_since = free_since
        return any(world.now - since > STUCK_S for _, since in free_since.values())
