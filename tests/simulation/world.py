"""All three cores in one deterministic world: a seeded network, simulated engines, clients, and faults.

Nothing here uses a socket, a process or the clock: time jumps from one due event to the next. All chance
comes from one seeded generator, so that the same seed gives the same story. After every step the core that
made it checks itself, and the world's checker what it can see from outside.
"""

import heapq
import random
from collections.abc import Callable, Iterator
from typing import Any, Final

from simulation.actor import NEVER
from simulation.broken import InvariantBroken
from simulation.broker_actor import BROKER_NAMES, BrokerActor
from simulation.calls import Call, Wish, wish
from simulation.checker import Checker
from simulation.clock import Clock
from simulation.engine import Temper
from simulation.frontend_actor import FrontendActor
from simulation.network import PERFECT, Conditions, Connection, Network
from simulation.peer import Peer
from simulation.stats import Stats
from simulation.story import Story, labelled, short, told_message, told_note
from simulation.worker_actor import WorkerActor

from gpu_worker.limits import SessionLimits
from proto.messages import Message
from proto.notes import Note
from proto.timing import Timing

LIMITS: Final = SessionLimits(
    step_s=10.0,
    text_s=10.0,
    decode_s=10.0,
    cancel_s=10.0,
    load_s=15.0,
    backoff_max_s=4.0,
    quarantine_s=15.0,
)
GAP_S: Final = 0.5
"""Between two looks at what does not change with every step."""


class World:
    def __init__(
        self,
        seed: int = 0,
        *,
        conditions: Conditions = PERFECT,
        timing: Timing | None = None,
        limits: SessionLimits = LIMITS,
        temper: Temper | None = None,
        queue_limit: int = 0,
        drift: float = 0.0,
        through_codec: bool = True,
        is_told: bool = True,
        self_checks: bool = True,
        brokers: int = 1,
    ) -> None:
        """`drift`: by which share an actor's clock may be fast or slow. `self_checks`: those of the cores."""
        self.self_checks = self_checks
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.timing = timing or Timing()
        self.limits, self.temper, self.queue_limit, self.drift = (
            limits,
            temper or Temper(),
            queue_limit,
            drift,
        )
        self.stats = Stats(seeds=1)
        self.story = Story(is_told=is_told)
        self.network = Network(self, conditions, through_codec=through_codec)
        self.checker = Checker(self)
        self.workers: list[WorkerActor] = []
        """The living, as `frontends`."""
        self.frontends: list[FrontendActor] = []
        self.graves: list[Peer] = []
        self.calls: list[Call] = []
        self.on_call_over: Callable[[Call], None] = lambda _call: None
        self.on_worker_exit: Callable[[WorkerActor], None] = lambda _worker: None
        self._due: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._count = 0
        self._labels: dict[str, int] = {}
        self.stats.brokers[str(brokers)] += 1
        self.brokers: list[BrokerActor] = []
        """The latest life of each, in the order in which their peers know them."""
        self.lost_for_good: set[int] = set()
        """Brokers, by index, whose host is gone: nobody starts them again."""
        for index in range(brokers):
            self.brokers.append(BrokerActor(self, index, life=1))
        self.after(GAP_S, self._look_around)

    # --- Names and clocks ----------------------------------------------------------------------

    def new_id(self, kind: str) -> bytes:
        number = self._labels[kind] = self._labels.get(kind, 0) + 1
        label = f"{kind}.{number}" if kind[-1:].isdigit() else f"{kind}{number}"
        return labelled(self.rng.randbytes(3), label)

    def new_clock(self) -> Clock:
        if not self.drift:
            return Clock()
        return Clock(self.rng.uniform(1 - self.drift, 1 + self.drift), self.rng.uniform(0.0, 1e5))

    @staticmethod
    def short(identifier: bytes | None) -> str:
        return short(identifier)

    # --- Actors --------------------------------------------------------------------------------

    @property
    def broker(self) -> BrokerActor:
        """The first."""
        return self.brokers[0]

    def peers(self) -> Iterator[Peer]:
        yield from self.workers
        yield from self.frontends

    def add_worker(self, name: str) -> WorkerActor:
        for elder in self.workers:
            if elder.name == name:
                elder.disturb(NEVER)  # It is superseded, and its execution lost.
        worker = WorkerActor(self, name)
        self.workers.append(worker)
        worker.tell(worker.timer_fired)
        return worker

    def add_frontend(self, name: str) -> FrontendActor:
        frontend = FrontendActor(self, name)
        self.frontends.append(frontend)
        frontend.tell(frontend.timer_fired)
        return frontend

    def bury(self) -> None:
        """Note who has died."""
        for living in (self.workers, self.frontends):
            dead = [each for each in living if not each.alive]
            if dead:
                living[:] = [each for each in living if each.alive]
                self.graves += dead

    def worker_exited(self, worker: WorkerActor) -> None:
        self.checker.worker_exited(worker)
        self.on_worker_exit(worker)

    def start_broker(self, index: int = 0) -> None:
        former = self.brokers[index]
        if former.alive or index in self.lost_for_good:
            return
        broker = self.brokers[index] = BrokerActor(self, index, former.life + 1)
        self.tell(broker.name, "starts")
        for peer in self.peers():
            self.network.try_again(peer.links[index])

    def restart_broker(self, index: int = 0, *, away_s: float = 0.5) -> None:
        self.brokers[index].kill()
        self.after(away_s, self.start_broker, index)

    # --- Clients -------------------------------------------------------------------------------

    def call(self, frontend: FrontendActor, wanted: Wish, deadline_s: float = 60.0) -> Call:
        """A client makes an RPC for its wish."""
        call = Call(
            job_id=self.new_id("job"),
            wish=wanted,
            frontend=frontend,
            opened_at=self.now,
            deadline_at=self.now + deadline_s,
        )
        self.calls.append(call)
        self.stats.calls += 1
        self.tell("client", f"calls {frontend.name} for {short(call.job_id)}: {wanted.job.prompt!r}")
        frontend.open(call)
        return call

    def ask(
        self, frontend: FrontendActor, key: str, prompt: str, *, deadline_s: float = 60.0, **details: Any
    ) -> Call:
        """The same, in one go."""
        return self.call(frontend, wish(key, prompt, **details), deadline_s)

    # --- Time ----------------------------------------------------------------------------------

    def after(self, delay_s: float, action: Callable[..., object], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay_s, self._count, action, arguments))

    def run_for(self, duration_s: float) -> None:
        end = self.now + duration_s
        due = self._due
        while due[0][0] <= end:
            self.now, _, action, arguments = heapq.heappop(due)
            action(*arguments)
        self.now = end

    def run_until(self, condition: Callable[[], bool], limit_s: float, *, must: bool = True) -> bool:
        """Go on until the condition holds; fails after `limit_s` of the world's time if it must."""
        end = self.now + limit_s
        while not condition():
            if self._due[0][0] > end:
                self.now = end
                assert not must, f"not within {limit_s} s\n{self.told()}"
                return False
            self.now, _, action, arguments = heapq.heappop(self._due)
            action(*arguments)
        return True

    def _look_around(self) -> None:
        self.bury()
        self.checker.look_around()
        self.after(GAP_S, self._look_around)

    # --- The story -----------------------------------------------------------------------------

    def tell(self, who: str, what: str) -> None:
        if self.story.is_told:
            self.story.write(self.now, who, what)

    def noted(self, who: str, note: Note) -> None:
        if self.story.is_told:
            self.story.write(self.now, who, told_note(note))

    def told_message(self, who: str, message: Message, connection: Connection | None) -> None:
        if not self.story.is_told:
            return
        what = told_message(message)
        if what is not None:
            self.story.write(self.now, who, f"-> {_receiver(who, connection)}: {what}")

    def told(self, lines: int = 80) -> str:
        return f"seed {self.seed}, t = {self.now:.3f}\n{self.story.tail(lines)}"

    def breaks(self, invariant: str, detail: str) -> InvariantBroken:
        self.tell("CHECKER", f"{invariant}: {detail}")
        return InvariantBroken(invariant, detail)


def _receiver(sender: str, connection: Connection | None) -> str:
    if connection is None:
        return "nobody"
    peer = connection.peer.name
    return BROKER_NAMES[connection.link.broker_index] if peer == sender else peer
