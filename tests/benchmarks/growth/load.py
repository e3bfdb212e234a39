"""`python -m benchmarks.growth.load`: a process with many simulated peers, each on a socket of its own.

It encodes as the product does, and of what arrives it reads no more than it needs: it is to be lighter than
the broker. What it saw goes to its standard output, as one JSON document.
"""

import argparse
import asyncio
import base64
import heapq
import json
import random
import resource
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

import msgpack
import zmq
from benchmarks.growth.peers import SimulatedFrontend, SimulatedWorker, submitted_at
from benchmarks.growth.workload import Workload

from proto.codec import decode, encode
from proto.messages import MAX_IMAGE_BYTES, Body, SnapshotRequest, Start
from proto.sockets import LoopSocket, SendResult

_WORKER_VIEW, _START, _OUTCOME, _REFUSE, _SNAPSHOT = 2, 6, 7, 8, 11
_COMMAND_AT: Final = 5
FILES: Final = 20_000

Peer = SimulatedWorker | SimulatedFrontend


@dataclass(slots=True)
class Seen:
    """Since the end of the warm-up. Seconds."""

    dispatch_s: list[float] = field(default_factory=list)
    """From a SUBMIT to its START."""
    added_s: list[float] = field(default_factory=list)
    """From a SUBMIT to its image, less what the worker needed for it."""
    snapshot_s: list[float] = field(default_factory=list)
    """From a request to its answer."""
    counts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    snapshot: str = ""
    """The latest header, in base64."""


class LoadProcess:
    def __init__(self, workload: Workload, endpoints: tuple[str, str], numbers: tuple[range, range]) -> None:
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(numbers[0].start)
        self._due: list[tuple[float, int]] = []
        self._armed_for = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._asked_at: dict[int, float] = {}
        self.seen = Seen()
        self._peers: list[Peer] = [
            *(self._worker(workload, number) for number in numbers[0]),
            *(self._frontend(workload, number) for number in numbers[1]),
        ]
        self._sockets = [
            self._connected(index, endpoints[isinstance(peer, SimulatedFrontend)])
            for index, peer in enumerate(self._peers)
        ]
        for index in range(len(self._peers)):
            self._plan(index)

    def _worker(self, workload: Workload, number: int) -> SimulatedWorker:
        return SimulatedWorker(
            worker_id=f"worker-{number}",
            incarnation=self._chance.randbytes(16),
            workload=workload,
            chance=self._chance,
            now=self._loop.time(),
        )

    def _frontend(self, workload: Workload, number: int) -> SimulatedFrontend:
        return SimulatedFrontend(
            frontend_id=f"frontend-{number}",
            incarnation=self._chance.randbytes(16),
            workload=workload,
            chance=self._chance,
            now=self._loop.time(),
        )

    def _connected(self, index: int, endpoint: str) -> LoopSocket:
        socket = LoopSocket(zmq.DEALER, MAX_IMAGE_BYTES, partial(self._on_frames, index))
        socket.connect(endpoint)
        return socket

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for socket in self._sockets:
            socket.close()

    # --- What is due ---------------------------------------------------------------------------

    def _plan(self, index: int) -> None:
        at = self._peers[index].next_deadline()
        heapq.heappush(self._due, (at, index))
        if at < self._armed_for:
            self._arm(at)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for, self._timer = at, self._loop.call_at(at, self._work)

    def _work(self) -> None:
        self._armed_for = float("inf")
        now = self._loop.time()
        while self._due[0][0] <= now:
            _, index = heapq.heappop(self._due)
            if now >= self._peers[index].next_deadline():  # Otherwise it was planned anew since.
                self._say(index, self._peers[index].due(now), now)
                self._plan(index)
        self._arm(self._due[0][0])

    def _say(self, index: int, messages: Iterable[Any], now: float) -> None:
        for message in messages:
            if isinstance(message, SnapshotRequest):
                self._asked_at[index] = now
            sent = self._sockets[index].send(encode(message)) is SendResult.SENT
            self.seen.counts[type(message).__name__ if sent else "unsent"] += 1

    # --- What arrives --------------------------------------------------------------------------

    def _on_frames(self, index: int, frames: list[Body]) -> None:
        now, command, peer = self._loop.time(), frames[0][_COMMAND_AT], self._peers[index]
        if isinstance(peer, SimulatedWorker):
            self._to_worker(peer, command, frames, now)
        else:
            self._to_frontend(index, peer, command, frames, now)
        if command in (_START, _OUTCOME):
            self._plan(index)

    def _to_worker(self, worker: SimulatedWorker, command: int, frames: list[Body], now: float) -> None:
        if command == _START:
            start = decode(frames)
            assert isinstance(start, Start)
            worker.started(start, now)
            self.seen.dispatch_s.append(now - submitted_at(start))
        elif command == _WORKER_VIEW:
            view = msgpack.unpackb(frames[1])
            worker.viewed(cancel=view["cancel"], release=view["release"], keep=view["keep"])
        else:
            self.seen.counts["workers refused"] += 1

    def _to_frontend(
        self, index: int, frontend: SimulatedFrontend, command: int, frames: list[Body], now: float
    ) -> None:
        if command == _OUTCOME:
            header = msgpack.unpackb(frames[1])
            began = frontend.ended(header["job_id"], now)
            kind = "failures" if header["image"] is None else "images" if began else "images again"
            self.seen.counts[kind] += 1
            if began is not None and header["image"] is not None:
                self.seen.added_s.append(now - began - header["image"]["inference_time_s"])
        elif command == _REFUSE:
            refuse = msgpack.unpackb(frames[1])
            self.seen.counts[f"refused {refuse['reason']}"] += 1
            if refuse["job_id"]:
                frontend.was_refused(refuse["job_id"])
        elif command == _SNAPSHOT:
            self.seen.snapshot_s.append(now - self._asked_at[index])
            self.seen.snapshot = base64.b64encode(frames[1]).decode()


async def load(workload: Workload, endpoints: tuple[str, str], numbers: tuple[range, range]) -> Seen:
    zmq.Context.instance().set(zmq.MAX_SOCKETS, FILES)
    process = LoadProcess(workload, endpoints, numbers)
    await asyncio.sleep(workload.warm_up_s)
    process.seen = Seen(snapshot=process.seen.snapshot)
    print("warm", flush=True)
    await asyncio.sleep(workload.duration_s)
    seen = process.seen
    print("measured", flush=True)
    await asyncio.to_thread(sys.stdin.readline)  # The broker is looked at before its peers go.
    process.close()
    return seen


def slices(count: int, parts: int) -> Iterator[range]:
    for part in range(parts):
        yield range(count * part // parts, count * (part + 1) // parts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", help="JSON")
    plan = json.loads(parser.parse_args().plan)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
    numbers = tuple(range(*each) for each in plan["numbers"])
    seen = asyncio.run(load(Workload(**plan["workload"]), tuple(plan["endpoints"]), numbers))  # type: ignore[arg-type]
    print(json.dumps({each.name: getattr(seen, each.name) for each in fields(seen)}), flush=True)


if __name__ == "__main__":
    main()
