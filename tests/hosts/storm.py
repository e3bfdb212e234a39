"""Faults one after the other, drawn from a seed: what breaks, where, and how it is mended."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hosts.cluster import BROKERS, FRONTENDS, WORKERS, Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that happens to the service, and ends again."""

    name: str
    hosts: frozenset[str]
    strike: Callable[[], None]
    mend: Callable[[], None]


class Storm:
    """The same seed gives the same faults."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self._cluster = cluster
        self._network = cluster.network
        self._chance = random.Random(seed)

    def rounds(self) -> Iterator[tuple[Fault, ...]]:
        """What happens at the same time: one fault, or two that concern different hosts."""
        while True:
            one, other = self._fault(), self._fault()
            both = self._chance.random() < 0.5 and not one.hosts & other.hosts
            yield (one, other) if both else (one,)

    def _fault(self) -> Fault:
        kinds = (
            self._unplugged,
            self._vanished,
            self._killed,
            self._ended,
            self._frozen,
            self._cut_off,
            self._cut_off_one_way,
            self._lossy,
            self._slow,
        )
        return self._chance.choice(kinds)()

    def lasts_for_answers(self) -> int:
        """How many calls may end before the fault is mended."""
        return self._chance.choice((1, 3, 10, 30))

    def _component(self) -> str:
        return self._chance.choice((*BROKERS, *FRONTENDS, *WORKERS))

    def _pair(self) -> tuple[str, str]:
        peer, broker = self._chance.choice((*FRONTENDS, *WORKERS)), self._chance.choice(BROKERS)
        return (peer, broker) if self._chance.random() < 0.5 else (broker, peer)

    def _unplugged(self) -> Fault:
        host = self._component()
        return Fault(
            name=f"{host} is unplugged",
            hosts=frozenset({host}),
            strike=partial(self._network.unplug, host),
            mend=partial(self._network.plug_in, host),
        )

    def _vanished(self) -> Fault:
        host = self._component()
        return Fault(
            name=f"{host} vanishes",
            hosts=frozenset({host}),
            strike=partial(self._cluster.vanish, host),
            mend=partial(self._cluster.come_back, host),
        )

    def _killed(self) -> Fault:
        name = self._component()
        component = self._cluster.components[name]
        return Fault(
            name=f"{name} is killed", hosts=frozenset({name}), strike=component.kill, mend=component.start
        )

    def _ended(self) -> Fault:
        name = self._component()
        mend = self._cluster.components[name].start
        return Fault(
            name=f"{name} is told to end",
            hosts=frozenset({name}),
            strike=partial(self._cluster.end, name),
            mend=mend,
        )

    def _frozen(self) -> Fault:
        name = self._component()
        component = self._cluster.components[name]
        return Fault(
            name=f"{name} freezes", hosts=frozenset({name}), strike=component.freeze, mend=component.thaw
        )

    def _cut_off(self) -> Fault:
        one, other = self._pair()

        def strike() -> None:
            self._network.cut(one, other)
            self._network.cut(other, one)

        return Fault(
            name=f"{one} and {other} are cut off",
            hosts=frozenset({one, other}),
            strike=strike,
            mend=self._network.heal,
        )

    def _cut_off_one_way(self) -> Fault:
        source, target = self._pair()
        strike = partial(self._network.cut, source, target)
        return Fault(
            name=f"{target} does not hear {source}",
            hosts=frozenset({source, target}),
            strike=strike,
            mend=self._network.heal,
        )

    def _lossy(self) -> Fault:
        host, percent = self._component(), self._chance.choice((1, 5, 20))
        strike = partial(self._network.lose, host, percent)
        return Fault(
            name=f"{host} loses {percent} %", hosts=frozenset({host}), strike=strike, mend=self._network.heal
        )

    def _slow(self) -> Fault:
        host, mbit_s = self._component(), self._chance.choice((1, 2, 10))
        strike = partial(self._network.limit, host, mbit_s)
        return Fault(
            name=f"{host} has {mbit_s} Mbit/s",
            hosts=frozenset({host}),
            strike=strike,
            mend=self._network.heal,
        )
