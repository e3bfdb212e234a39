"""Whatever can go wrong, and is mended after a while."""

import dataclasses
from typing import TYPE_CHECKING, Final

from simulation.actors import Actor, FrontendActor, Peer, WorkerActor
from simulation.engine import Temper

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
        world.on_worker_exit = self._worker_exited
        world.after(0.5, self._supervise)

    def come(self) -> None:
        self._is_on = True
        self._world.after(self._gap_s(), self._strike)
        self._change_weather()

    def mend(self) -> None:
        """Nothing breaks any more, and what is broken is made whole."""
        self._is_on = False
        world = self._world
        world.network.conditions = self._plan.calm
        world.temper = dataclasses.replace(SOUND, step_s=self._plan.temper.step_s)
        actors: list[Actor] = [world.broker, *world.peers()]
        for actor in actors:
            actor.trap = actor.dies_after = None
            if actor.frozen:
                actor.thaw()
        for peer in list(world.peers()):
            world.network.heal(peer)

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
        if not world.broker.alive:
            world.after(rng.uniform(0.0, 2.0), world.start_broker)
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
            case "broker":
                return self._break_broker(rest)
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
        awake = [each for each in actors if each.alive and not each.frozen]
        return self._rng.choice(awake) if awake else None

    def _long_or_short_s(self) -> float:
        return self._rng.choice((self._rng.uniform(0.1, 3.0), self._rng.uniform(3.0, 15.0)))

    def _break_broker(self, how: str) -> bool:
        broker, rng = self._world.broker, self._rng
        if not broker.alive or broker.frozen:
            return False
        match how:
            case "killed":
                broker.kill()
            case "ends":
                broker.drain()
            case "frozen":
                broker.freeze(self._long_or_short_s(), breaks=rng.random() < 0.5)
            case "killed when it starts a job, and its worker frozen":
                broker.trap = (self._starts_and_freezes, True)
            case _:
                broker.kill()
                worker = self._busy_worker()
                if worker is not None:
                    self._world.after(rng.uniform(0.0, 1.0), worker.kill)
        if not broker.alive and rng.random() < 0.5:
            self._world.after(rng.uniform(0.0, 1.0), self._world.start_broker)
        return True

    def _starts_and_freezes(self, message: Message) -> bool:
        """Nobody but the worker has heard of its execution, and it cannot tell the next broker."""
        if not isinstance(message, Start):
            return False
        for worker in self._world.workers:
            if worker.incarnation == message.incarnation:
                self._world.after(self._rng.uniform(0.1, 1.0), worker.freeze, self._rng.uniform(4.0, 15.0))
        return True

    def _busy_worker(self) -> WorkerActor | None:
        busy = [worker for worker in self._world.workers if worker.alive and worker.running is not None]
        return self._rng.choice(busy) if busy else self._one_of(self._world.workers)

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
        if victim is None or victim.is_cut:
            return False
        duration_s = self._long_or_short_s()
        self._world.tell(victim.name, f"is cut {how} for {duration_s:.1f} s")
        up, down = how != "from the broker", how != "towards the broker"
        self._world.network.cut(victim, up=up, down=down, duration_s=duration_s)
        return True

    def _ambush(self, how: str) -> bool:
        """Somebody dies between two actions of one step, or just before or after it sends something."""
        rng, world = self._rng, self._world
        role = rng.choice(("broker", "worker", "frontend"))
        actor: Actor | None = world.broker
        if role != "broker":
            actor = self._one_of(world.workers if role == "worker" else world.frontends)
        if actor is None or not actor.alive:
            return False
        if how == "in the midst of a step":
            actor.dies_after = rng.randint(0, 4)
        else:
            actor.trap = (trap_for(rng.choice(TRAPS[role])), rng.random() < 0.5)
        return True
