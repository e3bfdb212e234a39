"""What can go wrong with brokers, and with the links to one of several."""

import random
from typing import TYPE_CHECKING, Any, Final

from simulation.actor import Actor
from simulation.broker_actor import BrokerActor
from simulation.network import Link
from simulation.worker_actor import WorkerActor

from proto.messages import Message, Start

if TYPE_CHECKING:
    from simulation.plan import Plan
    from simulation.world import World

HOW: Final = ("towards the broker", "from the broker", "both ways")
LONG_S: Final = 30.0


def one_awake(actors: list[Any], rng: random.Random) -> Any:
    """None if all are dead or frozen."""
    awake = [each for each in actors if each.alive and not each.frozen]
    return rng.choice(awake) if awake else None


def long_or_short_s(rng: random.Random) -> float:
    return rng.choice((rng.uniform(0.1, 3.0), rng.uniform(3.0, 15.0)))


def busy_worker(world: "World") -> WorkerActor | None:
    busy = [worker for worker in world.workers if worker.alive and worker.running is not None]
    return world.rng.choice(busy) if busy else one_awake(world.workers, world.rng)


def cut(world: "World", link: Link, how: str, duration_s: float) -> None:
    """`how`: towards the broker, from the broker, or otherwise both ways."""
    up, down = how != "from the broker", how != "towards the broker"
    world.network.cut(link, up=up, down=down, duration_s=duration_s)


class BrokerFaults:
    """With one broker it draws no more chance than it needs for that: old seeds stay what they were."""

    def __init__(self, world: "World", plan: "Plan") -> None:
        self._world, self._plan, self._rng = world, plan, world.rng
        self._apart: dict[tuple[str, int], str] = {}
        """By the name of a peer and the index of a broker: how they cannot hear each other."""

    def part(self) -> None:
        """Some links are cut until all is made whole, whoever lives at their ends."""
        if not self._plan.apart:
            return
        names = [f"f{n}" for n in range(self._plan.frontends)] + [f"w{n}" for n in range(self._plan.workers)]
        for name in names:
            for index in range(len(self._world.brokers)):
                if self._rng.random() < self._plan.apart:
                    self._apart[name, index] = self._rng.choice(HOW)

    def join(self) -> None:
        """What was cut by `part` is whole again."""
        self._apart.clear()

    def _keep_apart(self) -> None:
        for peer in self._world.peers():
            for link in peer.links:
                how = self._apart.get((peer.name, link.broker_index))
                if how is not None and not link.is_cut:
                    cut(self._world, link, how, LONG_S)

    def supervise(self, *, is_hasty: bool) -> None:
        """Those that have died are started, sooner or later."""
        if self._apart:
            self._keep_apart()
        world, rng = self._world, self._rng
        for broker in world.brokers:
            if broker.alive or broker.index in world.lost_for_good:
                continue
            if is_hasty or len(world.brokers) == 1 or rng.random() < self._plan.broker_comes_back:
                world.after(rng.uniform(0.0, 2.0), world.start_broker, broker.index)

    def one_of_all(self) -> BrokerActor:
        brokers = self._world.brokers
        return brokers[0] if len(brokers) == 1 else self._rng.choice(brokers)

    def strike(self, kind: str) -> bool:
        """False if there was nothing of the kind to break."""
        broker = self.one_of_all()
        if not broker.alive or broker.frozen:
            return False
        match kind:
            case "brokers end in turn":
                self._roll()
            case "brokers all killed":
                for each in self._world.brokers:
                    each.kill()
            case "broker lost for good":
                return self._lose_for_good(broker)
            case "broker cut from workers" | "broker cut from frontends":
                self._cut_off(broker, kind)
            case _:
                self._break(broker, kind)
        return True

    def cut_link(self, how: str) -> bool:
        """Of one peer with one broker."""
        peer = one_awake(list(self._world.peers()), self._rng)
        if peer is None:
            return False
        link, duration_s = self._rng.choice(peer.links), long_or_short_s(self._rng)
        broker = self._world.brokers[link.broker_index]
        self._world.tell(peer.name, f"and {broker.name} are cut {how} for {duration_s:.1f} s")
        cut(self._world, link, how, duration_s)
        return True

    # --- One broker ----------------------------------------------------------------------------

    def _break(self, broker: BrokerActor, kind: str) -> None:
        rng = self._rng
        match kind:
            case "broker killed":
                broker.kill()
            case "broker ends":
                broker.drain()
            case "broker frozen":
                broker.freeze(long_or_short_s(rng), breaks=rng.random() < 0.5)
            case "broker killed when it starts a job, and its worker frozen":
                broker.trap = (self._starts_and_freezes, True)
            case _:
                broker.kill()
                worker = busy_worker(self._world)
                if worker is not None:
                    self._world.after(rng.uniform(0.0, 1.0), worker.kill)
        if not broker.alive and rng.random() < 0.5:
            self._world.after(rng.uniform(0.0, 1.0), self._world.start_broker, broker.index)

    def _starts_and_freezes(self, message: Message) -> bool:
        """Nobody but the worker has heard of its execution, and it cannot tell the next broker."""
        if not isinstance(message, Start):
            return False
        for worker in self._world.workers:
            if worker.incarnation == message.incarnation:
                self._world.after(self._rng.uniform(0.1, 1.0), worker.freeze, self._rng.uniform(4.0, 15.0))
        return True

    def _cut_off(self, broker: BrokerActor, kind: str) -> None:
        """Some or all of its workers or frontends, one way or both."""
        rng, world = self._rng, self._world
        peers: list[Any] = list(world.workers if kind.endswith("workers") else world.frontends)
        how = rng.choice(HOW)
        duration_s, share = long_or_short_s(rng), rng.choice((0.5, 1.0))
        for peer in peers:
            if rng.random() < share:
                world.tell(broker.name, f"and {peer.name} are cut {how} for {duration_s:.1f} s")
                cut(world, peer.links[broker.index], how, duration_s)

    def _lose_for_good(self, broker: BrokerActor) -> bool:
        """Not the last one that there is to be."""
        world = self._world
        if len(world.lost_for_good) >= len(world.brokers) - 1:
            return False
        world.tell(broker.name, "is lost for good")
        world.lost_for_good.add(broker.index)
        broker.kill()
        return True

    # --- All of them ---------------------------------------------------------------------------

    def _roll(self) -> None:
        """As an upgrade does it: the next one ends when the last one is there again."""
        delay_s = 0.0
        for broker in self._world.brokers:
            self._world.after(delay_s, self._end_and_start, broker.index)
            delay_s += self._rng.uniform(3.0, 8.0)

    def _end_and_start(self, index: int) -> None:
        broker: Actor = self._world.brokers[index]
        if isinstance(broker, BrokerActor) and broker.alive and not broker.frozen:
            broker.drain()
            self._world.after(self._rng.uniform(1.1, 2.0), self._world.start_broker, index)
