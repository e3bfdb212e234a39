"""Whatever can go wrong, and is mended after a while."""

import dataclasses
from typing import TYPE_CHECKING, Final

from simulation.actor import Actor
from simulation.broker_faults import BrokerFaults, busy_worker, cut, long_or_short_s, one_awake
from simulation.engine import Temper
from simulation.frontend_actor import FrontendActor
from simulation.peer import Peer
from simulation.worker_actor import WorkerActor

from gpu_worker.actions import Exit
from proto.messages import FrontendReport, Message, Outcome, Start, Submit, WorkerReport, WorkerView

if TYPE_CHECKING:
    from simulation.plan import Plan
    from simulation.world import World

SOUND: Final = Temper()
TRAPS: Final = {
    "broker": ("start", "outcome", "keep", "cancel", "resend"),
    "worker": ("outcome", "busy report", "report"),
    "frontend": ("submit", "report"),
}


def trap_for(kind: str):
    """Whether a message is the one at which its sender shall die."""

    def matches(message: Message) -> bool:
        match kind, message:
            case ("start", Start()) | ("outcome", Outcome()) | ("submit", Submit()):
                return True
            case "busy report", WorkerReport(running=running):
                return running is not None
            case "report", WorkerReport() | FrontendReport():
                return True
            case "keep", WorkerView(keep=wished) | WorkerView(release=wished):
                return bool(wished)
            case "cancel", WorkerView(cancel=wished):
                return bool(wished)
            case "resend", WorkerView(resend=wished):
                return bool(wished)
            case _:
                return False

    return matches


class Faults:
    """Breaks something now and then; whoever dies is started again by its supervisor."""

    def __init__(self, world: "World", plan: "Plan") -> None:
        self._world, self._plan, self._rng = world, plan, world.rng
        self._is_on = False
        self._names = 0
        self._brokers = BrokerFaults(world, plan)
        world.on_worker_exit = self._worker_exited
        world.after(0.5, self._supervise)

    def come(self) -> None:
        self._is_on = True
        self._brokers.part()
        self._world.after(self._gap_s(), self._strike)
        self._change_weather()

    def mend(self) -> None:
        """Nothing breaks any more, and what is broken is made whole."""
        self._is_on = False
        self._brokers.join()
        world = self._world
        world.network.conditions = self._plan.calm
        world.temper = dataclasses.replace(SOUND, step_s=self._plan.temper.step_s)
        actors: list[Actor] = [*world.brokers, *world.peers()]
        for actor in actors:
            actor.trap = actor.dies_after = None
            if actor.frozen:
                actor.thaw()
        for peer in list(world.peers()):
            for link in peer.links:
                world.network.heal(link)

    # --- Weather and supervisors ---------------------------------------------------------------

    def _change_weather(self) -> None:
        if not self._is_on:
            return
        stormy = self._rng.random() < self._plan.squall_share
        self._world.network.conditions = self._plan.storm if stormy else self._plan.calm
        self._world.tell("network", "becomes bad" if stormy else "is good")
        self._world.after(self._rng.uniform(5.0, 30.0), self._change_weather)

    def _supervise(self) -> None:
        """Whatever is missing is started, sooner or later."""
        world, rng = self._world, self._rng
        self._brokers.supervise(is_hasty=not self._is_on)
        comes_back = self._plan.comes_back if self._is_on else 0.5
        present = {each.name for each in world.frontends if each.alive}
        missing = [f"f{n}" for n in range(self._plan.frontends) if f"f{n}" not in present]
        for name in missing:
            if rng.random() < comes_back:
                world.add_frontend(name)
        present = {each.name for each in world.workers if each.alive}
        missing = [f"w{n}" for n in range(self._plan.workers) if f"w{n}" not in present]
        for name in missing:
            if rng.random() < comes_back:
                world.add_worker(name)
        world.after(rng.uniform(0.2, 1.0), self._supervise)

    def _worker_exited(self, worker: WorkerActor) -> None:
        exited: Exit | None = worker.exited
        self._world.stats.faults[f"worker exits with {'?' if exited is None else exited.code}"] += 1

    # --- Faults --------------------------------------------------------------------------------

    def _gap_s(self) -> float:
        return self._rng.expovariate(1 / self._plan.fault_gap_s)

    def _strike(self) -> None:
        if not self._is_on:
            return
        kinds = list(self._plan.faults)
        kind = self._rng.choices(kinds, weights=list(self._plan.faults.values()))[0]
        if self._break(kind):
            self._world.stats.faults[kind] += 1
        self._world.after(self._gap_s(), self._strike)

    def _break(self, kind: str) -> bool:
        """False if there was nothing of the kind to break."""
        subject, _, rest = kind.partition(" ")
        match subject:
            case "broker" | "brokers":
                return self._brokers.strike(kind)
            case "link":
                return self._brokers.cut_link(rest)
            case "cut":
                return self._cut(rest)
            case "worker" | "engine" | "idle":
                worker = self._one_of(self._world.workers)
                return worker is not None and self._break_worker(kind, worker)
            case "frontend":
                frontend = self._one_of(self._world.frontends)
                return frontend is not None and self._break_frontend(rest, frontend)
            case _:
                return self._ambush(rest)

    def _one_of(self, actors: list):
        return one_awake(actors, self._rng)

    def _long_or_short_s(self) -> float:
        return long_or_short_s(self._rng)

    def _busy_worker(self) -> WorkerActor | None:
        return busy_worker(self._world)

    def _break_worker(self, kind: str, worker: WorkerActor) -> bool:
        rng = self._rng
        busy = self._busy_worker() if rng.random() < 0.5 else None
        match kind:
            case "worker killed":
                (busy or worker).kill()
            case "worker frozen":
                chosen = busy if busy is not None and not busy.frozen else worker
                chosen.freeze(
                    self._long_or_short_s(), breaks=rng.random() < 0.5, engine_too=rng.random() < 0.5
                )
            case "worker ends":
                worker.drain()
            case "worker has a namesake":
                if rng.random() < 0.5:
                    worker.freeze(self._long_or_short_s())
                self._world.add_worker(worker.name)
            case "idle engine killed":
                if worker.running is not None:
                    return False
                worker.crash_engine()
            case _:
                (busy or worker).crash_engine()
        return True

    def _break_frontend(self, how: str, frontend: FrontendActor) -> bool:
        match how:
            case "killed":
                frontend.kill()
            case "frozen":
                frontend.freeze(self._long_or_short_s(), breaks=self._rng.random() < 0.5)
            case _:
                if frontend.is_draining:
                    return False
                frontend.drain()
        return True

    def _cut(self, how: str) -> bool:
        victim: Peer | None = self._one_of(list(self._world.peers()))
        if victim is None or any(link.is_cut for link in victim.links):
            return False
        duration_s = self._long_or_short_s()
        self._world.tell(victim.name, f"is cut {how} for {duration_s:.1f} s")
        for link in victim.links:
            cut(self._world, link, how, duration_s)
        return True

    def _ambush(self, how: str) -> bool:
        """Somebody dies between two actions of one step, or just before or after it sends something."""
        rng, world = self._rng, self._world
        role = rng.choice(("broker", "worker", "frontend"))
        actor: Actor | None = self._brokers.one_of_all()
        if role != "broker":
            actor = self._one_of(world.workers if role == "worker" else world.frontends)
        if actor is None or not actor.alive:
            return False
        if how == "in the midst of a step":
            actor.dies_after = rng.randint(0, 4)
        else:
            actor.trap = (trap_for(rng.choice(TRAPS[role])), rng.random() < 0.5)
        return True
