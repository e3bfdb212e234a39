"""The broker's core alone, in simulated time: what each kind of event costs it.

No socket, no encoding: what is left is how its tables grow.
"""

import heapq
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.growth.peers import SimulatedFrontend, SimulatedWorker
from benchmarks.growth.workload import Workload

from broker.actions import SendToFrontend, SendToWorker
from broker.core import Broker
from broker.events import FromFrontend, FromWorker, TimerFired
from proto.messages import Outcome, Refuse, Start, WorkerView
from proto.timing import Timing

START: Final = 1000.0


@dataclass(slots=True)
class Costs:
    """By kind of event: how many, and seconds of CPU."""

    count: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    cpu_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    jobs: int = 0
    refused: int = 0

    @property
    def total_s(self) -> float:
        return sum(self.cpu_s.values())

    def each_us(self, kind: str) -> float:
        return self.cpu_s[kind] / self.count[kind] * 1e6 if self.count[kind] else float("nan")


class CoreRun:
    """One broker and its peers, from their first words on."""

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._chance = random.Random(1)
        self._now = START
        self.core = Broker(
            broker_id="broker",
            epoch=bytes(16),
            new_execution_id=lambda: self._chance.randbytes(16),
            timing=Timing(rebuild_s=0),
            queue_limit=workload.queue_limit,
        )
        self.costs = Costs()
        self._workers = {
            f"worker-{number}".encode(): SimulatedWorker(
                worker_id=f"worker-{number}",
                incarnation=self._chance.randbytes(16),
                workload=workload,
                chance=self._chance,
                now=START,
            )
            for number in range(workload.workers)
        }
        self._frontends = {
            f"frontend-{number}".encode(): SimulatedFrontend(
                frontend_id=f"frontend-{number}",
                incarnation=self._chance.randbytes(16),
                workload=workload,
                chance=self._chance,
                now=START,
            )
            for number in range(workload.frontends)
        }
        self._due: list[tuple[float, bytes]] = []

    def run(self) -> Costs:
        """Its costs after the warm-up."""
        for route in (*self._workers, *self._frontends):
            self._plan(route)
        self._run_until(START + self._workload.warm_up_s)
        self.costs = Costs()
        self._run_until(self._now + self._workload.duration_s)
        self.costs.refused = sum(peer.refused for peer in self._frontends.values())
        return self.costs

    def _run_until(self, end: float) -> None:
        while self._due[0][0] <= end:
            due_at, route = heapq.heappop(self._due)
            while (deadline := self.core.next_deadline()) is not None and deadline <= due_at:
                self._now = deadline
                self._tell("TimerFired", TimerFired())
            self._now = due_at
            peer = self._peer(route)
            if due_at >= peer.next_deadline():  # Otherwise it was planned anew since.
                self._speak(route)
        self._now = end

    def _peer(self, route: bytes) -> SimulatedWorker | SimulatedFrontend:
        return self._workers.get(route) or self._frontends[route]

    def _plan(self, route: bytes) -> None:
        heapq.heappush(self._due, (self._peer(route).next_deadline(), route))

    def _speak(self, route: bytes) -> None:
        for message in self._peer(route).due(self._now):
            kind = type(message).__name__
            from_worker = route in self._workers
            event: Any = (FromWorker if from_worker else FromFrontend)(route=route, message=message)
            self._tell(kind, event)
        self._plan(route)

    def _tell(self, kind: str, event: Any) -> None:
        began = time.thread_time_ns()
        actions = self.core.handle(event, self._now)
        self.costs.cpu_s[kind] += (time.thread_time_ns() - began) / 1e9
        self.costs.count[kind] += 1
        for route in self._told(actions):
            self._plan(route)

    def _told(self, actions: list[Any]) -> Iterator[bytes]:
        """Let the peers hear what was sent; gives those whose plans it changes."""
        for action in actions:
            match action:
                case SendToWorker(route=route, message=Start() as start):
                    self._workers[route].started(start, self._now)
                    yield route
                case SendToWorker(route=route, message=WorkerView() as view):
                    self._workers[route].viewed(cancel=view.cancel, release=view.release, keep=view.keep)
                case SendToFrontend(route=route, message=Outcome(job_id=job_id)):
                    self.costs.jobs += 1
                    self._frontends[route].ended(job_id, self._now)
                    yield route
                case SendToFrontend(route=route, message=Refuse(job_id=bytes(job_id))):
                    self._frontends[route].was_refused(job_id)
                case _:
                    pass
