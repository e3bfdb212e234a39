"""Faults drawn from a seed: which process or link, what happens to it, and how it is mended.

A fault counts only with a proof that it happened: of a kill, that the process is gone and who took its place;
of a freeze, that the kernel says so at both ends of it; of a partition, that frames were dropped.
"""

import contextlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import psutil
from campaign.service import Service
from hosts.network import Network
from processes.stack import Component, until

KINDS: Final = {"SIGKILL": 45, "SIGSTOP": 30, "partition": 25}
"""Weights."""
PROCESSES: Final = ("broker", "frontend", "worker", "engine", "forkserver", "client")
CHILDREN: Final = frozenset({"engine", "forkserver"})
FROZEN_WITHIN_S: Final = 10.0


class Fault(ABC):
    """Strikes once, and is mended once."""

    kind: str
    process: str
    """Which kind of process; `link` for a partition."""
    targets: tuple[str, ...]
    pid: int | None = None
    life: int | None = None
    """The how manieth process of that component it is, or is a child of."""

    @abstractmethod
    def strike(self) -> None: ...

    @abstractmethod
    def mend(self) -> str:
        """What proves that it happened; empty if nothing does."""


class Killed(Fault):
    """A component, which is started again as its service manager would."""

    kind = "SIGKILL"

    def __init__(self, component: Component) -> None:
        self.process, self.targets = role_of(component.name), (component.name,)
        self._component = component
        self.pid, self.life = component.pid, len(component.sessions)

    def strike(self) -> None:
        self._component.kill()

    def mend(self) -> str:
        self._component.start()
        return f"{self.pid} ended by signal 9, {self._component.pid} took its place"


class ChildKilled(Fault):
    """An engine process or a forkserver, which its worker replaces."""

    kind = "SIGKILL"

    def __init__(self, process: str, worker: Component, child: psutil.Process) -> None:
        self.process, self.targets = process, (worker.name,)
        self._child = child
        self._worker = worker
        self.pid, self.life = child.pid, len(worker.sessions)

    def strike(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._child.kill()

    def mend(self) -> str:
        until(f"{self._child.pid} is gone", lambda: is_gone(self._child))
        now = self._worker.engine_now() if self.process == "engine" else self._worker.forkserver()
        follower = f"{now.pid} took its place" if now is not None else "none has taken its place yet"
        return f"{self._child.pid} is gone, {follower}"


class Frozen(Fault):
    """Stopped, and continued later; what gives up on it meanwhile may end it."""

    kind = "SIGSTOP"

    def __init__(self, process: str, component: Component, frozen: psutil.Process) -> None:
        self.process, self.targets = process, (component.name,)
        self._frozen = frozen
        self.pid, self.life = frozen.pid, len(component.sessions)
        self._was_seen = False

    def strike(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._frozen.suspend()
            until(f"{self._frozen.pid} is frozen", self._is_frozen_or_gone, FROZEN_WITHIN_S)
            self._was_seen = is_frozen(self._frozen)

    def _is_frozen_or_gone(self) -> bool:
        return is_gone(self._frozen) or is_frozen(self._frozen)

    def mend(self) -> str:
        if not self._was_seen:
            return ""
        if is_gone(self._frozen):
            return f"{self._frozen.pid} was stopped, and ended"
        proof = f"{self._frozen.pid} was stopped" if is_frozen(self._frozen) else ""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._frozen.resume()
        return proof


class CutOff(Fault):
    """Two hosts from each other, one way or both; or one host from all."""

    kind = "partition"
    process = "link"

    def __init__(self, network: Network, targets: tuple[str, ...], *, both_ways: bool = True) -> None:
        self.targets = targets
        self._network = network
        self._both_ways = both_ways
        self._cuts: Sequence[int] = ()

    def strike(self) -> None:
        if len(self.targets) == 1:
            self._cuts = self._network.isolate(self.targets[0])
            return
        one, other = self.targets
        self._cuts = [self._network.cut(one, other)]
        if self._both_ways:
            self._cuts = [*self._cuts, self._network.cut(other, one)]

    def mend(self) -> str:
        frames = sum(self._network.mend(cut) for cut in self._cuts)
        return f"{frames} frames were dropped" if frames else ""


class Chance:
    """The same seed draws the same faults, as far as the same processes are there to be struck."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._random = random.Random(seed)
        self._kinds = [kind for kind in KINDS if kind != "partition" or service.network is not None]

    def pause_s(self, mean_s: float) -> float:
        return self._random.uniform(0.2, 1.8) * mean_s

    def duration_s(self, scale: float) -> float:
        """From a moment to beyond the silence after which a peer is lost (8 s)."""
        return self._random.choice((0.1, 0.5, 1, 2, 4, 9)) * scale

    def fault(self, on: Sequence[Fault]) -> Fault | None:
        """The next one, while these are on; None if what was drawn cannot be struck just now."""
        (kind,) = self._random.choices(self._kinds, [KINDS[kind] for kind in self._kinds])
        if kind == "partition":
            return self._partition(on)
        process = self._random.choice(PROCESSES)
        struck = {target for fault in on if fault.kind != "partition" for target in fault.targets}
        role = "worker" if process in CHILDREN else process
        names = [name for name in self._service.everybody if role_of(name) == role and name not in struck]
        if not names:
            return None
        component = self._service.everybody[self._random.choice(names)]
        return self._of_process(kind, process, component) if component.is_running else None

    def _of_process(self, kind: str, process: str, component: Component) -> Fault | None:
        if process not in CHILDREN:
            if kind == "SIGKILL":
                return Killed(component)
            return Frozen(process, component, psutil.Process(component.pid))
        child = component.engine_now() if process == "engine" else component.forkserver()
        if child is None:
            return None
        if kind == "SIGKILL":
            return ChildKilled(process, component, child)
        return Frozen(process, component, child)

    def _partition(self, on: Sequence[Fault]) -> Fault | None:
        """Along a link that is used: peers with brokers, clients with frontends."""
        network = self._service.network
        assert network is not None
        name = self._random.choice(list(self._service.everybody))
        partners = {"broker": ("frontend", "worker"), "client": ("frontend",), "worker": ("broker",)}
        others = partners.get(role_of(name), ("broker", "client"))
        other = self._random.choice([each for each in self._service.everybody if role_of(each) in others])
        way = self._random.choice(("one", "both", "all"))
        targets = (name,) if way == "all" else (name, other)
        if any(fault.targets == targets for fault in on if fault.kind == "partition"):
            return None
        return CutOff(network, targets, both_ways=way == "both")


def role_of(name: str) -> str:
    return name.partition("-")[0]


def is_frozen(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def is_gone(process: psutil.Process) -> bool:
    """Ended; a number that another process has by now is not taken for it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
