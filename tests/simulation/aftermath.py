"""When nothing breaks any more: how soon everybody agrees again, and what is left.

`peer_lost_s`, `rebuild_s` and four heartbeats after the last fault (and the restart of what is missing) each
broker knows exactly the living workers, and their slots. Once the last call has ended and the last grace is
over, none has a job, no worker runs anything, nothing is held that was not released, and a fresh call gets
its image from every frontend. All of that also where one broker of several never came back.
"""

from typing import TYPE_CHECKING, Final

from simulation.invariants import AGREE, FRESH, MARGIN, RELEASED

from broker.workers import Idle, Offered, Running
from gpu_worker.engine_keeper import Ready
from gpu_worker.slot import Free, in_engine

if TYPE_CHECKING:
    from simulation.broker_actor import BrokerActor
    from simulation.worker_actor import WorkerActor
    from simulation.world import World

HEARTBEATS: Final = 4
RESTART_S: Final = 8.0
"""Until a supervisor has started again what is missing, and it is connected."""
LAST_DEADLINE_S: Final = 65.0
FRESH_S: Final = 20.0


class Aftermath:
    def __init__(self, world: "World") -> None:
        self._world = world
        timing = world.timing
        self.agree_s = (
            RESTART_S
            + (timing.peer_lost_s + timing.rebuild_s + HEARTBEATS * timing.heartbeat_interval_s) / MARGIN
        )
        limits = world.limits
        self.mended_s = max(limits.quarantine_s, limits.backoff_max_s) + 3 * limits.load_s
        self.grace_s = timing.orphan_grace_s + timing.peer_lost_s + LAST_DEADLINE_S + limits.held_age_max_s

    def check(self) -> None:
        world = self._world
        world.run_for(self.agree_s)
        self._within(3.0, AGREE, self._disagreement)
        self._within(LAST_DEADLINE_S + 2.0, RELEASED, self._open_calls)
        self._within(self.grace_s, RELEASED, self._leftovers)
        self._within(self.mended_s, AGREE, self._unready)
        world.run_for(2 * world.timing.heartbeat_interval_s)
        self._ask_afresh()
        self._within(self.grace_s, RELEASED, self._leftovers)
        self._within(3.0, AGREE, self._disagreement)

    def _within(self, limit_s: float, invariant: str, complaint) -> None:
        """Looked at a few times a second, until there is no complaint."""
        world = self._world
        end = world.now + limit_s
        while (wrong := complaint()) is not None:
            if world.now >= end:
                raise world.breaks(invariant, wrong)
            world.run_for(0.3)
        world.checker.count(invariant)

    def _disagreement(self) -> str | None:
        world = self._world
        for broker in world.brokers:
            if not broker.alive and broker.index not in world.lost_for_good:
                return f"{broker.name} was not started again"
            wrong = self._broker_disagrees(broker) if broker.alive else None
            if wrong is not None:
                return f"{broker.name}: {wrong}"
        return None

    def _broker_disagrees(self, broker: "BrokerActor") -> str | None:
        world = self._world
        registered = {worker.worker_id: worker for worker in broker.core.state.workers}
        living = {worker.name: worker for worker in world.workers if worker.alive}
        if set(registered) != set(living):
            return f"registered are {sorted(registered)}, living {sorted(living)}"
        for name, worker in living.items():
            if registered[name].incarnation != worker.incarnation:
                return f"another life of {name} is registered"
            wrong = self._slot_differs(worker, registered[name].slot)
            if wrong is not None:
                return wrong
        return None

    def _slot_differs(self, worker: "WorkerActor", believed: object) -> str | None:
        busy = in_engine(worker.session.slot)
        match believed:
            case Idle() if busy is None:
                return None
            case Running(execution_id=execution_id) | Offered(execution_id=execution_id) if (
                busy is not None and busy.execution_id == execution_id
            ):
                return None
        return f"{worker.name} does {worker.session.slot}, and is believed to be {believed}"

    def _open_calls(self) -> str | None:
        opened = self._world.checker.open_calls
        return f"{self._world.short(opened[0].job_id)} is open" if opened else None

    def _leftovers(self) -> str | None:
        world = self._world
        for broker in world.brokers:
            if broker.alive and len(broker.core.state.jobs):
                jobs = ", ".join(f"{world.short(job.job_id)} {job.state}" for job in broker.core.state.jobs)
                return f"{broker.name} has {jobs}"
        for worker in world.workers:
            if not isinstance(worker.session.slot, Free):
                return f"{worker.name} does {worker.session.slot}"
            if worker.session.encoding:
                return f"{worker.name} makes {len(worker.session.encoding)} PNGs"
            unreleased = [outcome for outcome in worker.session.held.listed() if not outcome.released]
            if unreleased:
                return f"{worker.name} holds {world.short(unreleased[0].execution_id)}"
        return None

    def _unready(self) -> str | None:
        for worker in self._world.workers:
            if not isinstance(worker.session.engine.state, Ready):
                return f"{worker.name}: {worker.session.engine.state}"
        return None

    def _ask_afresh(self) -> None:
        world = self._world
        for frontend in list(world.frontends):
            call = world.ask(frontend, f"fresh {frontend.name}", "still there?", deadline_s=FRESH_S)
            world.run_until(lambda call=call: not call.is_open, FRESH_S + 1.0, must=False)
            if call.ending() != "image":
                raise world.breaks(FRESH, f"{call.ending()} at {frontend.name}: {call.end}")
            world.checker.count(FRESH)
