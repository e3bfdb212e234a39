"""Runs a campaign: bursts of faults, several on at a time, each followed by a calm; and writes the ledger."""

import heapq
import itertools
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from campaign.faults import Chance, Fault
from campaign.service import Service
from processes.stack import LIMIT_S, processes_of, until

LOOK_S: Final = 0.2
WHOLE_LIMIT_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    jobs: int
    faults: int
    seed: int = 1
    burst: int = 40
    """Faults between two calms."""
    spacing_s: float = 0.7
    """Between the beginnings of two faults, on average."""
    duration_scale: float = 1.0
    calm_s: float = 12.0
    """Longer than the judge lets a job wait while all is whole."""


class Campaign:
    def __init__(self, service: Service, plan: Plan, folder: Path) -> None:
        self.ledger = folder / "campaign.jsonl"
        self._service = service
        self._plan = plan
        self._own = folder / "faults.jsonl"
        self._chance = Chance(service, plan.seed)
        self._numbers = itertools.count(1)
        self._on: list[tuple[float, int, Fault]] = []
        """A heap: when each ends."""
        self._proved = 0
        self._pause = threading.Event()

    def run(self) -> Path:
        """The whole ledger. Each client has then ended all that it had begun."""
        self._write("campaign", jobs=self._plan.jobs, faults=self._plan.faults, seed=self._plan.seed)
        try:
            for client in self._service.clients.values():
                client.start()
            while self._proved < self._plan.faults or self._jobs() < self._plan.jobs:
                self._burst()
                self._calm()
                print(f"{self._proved} faults, {self._jobs()} jobs", flush=True)
            self._end_clients()
        finally:
            for process in processes_of(
                [pid for each in self._service.clients.values() for pid in each.sessions]
            ):
                process.kill()
        self._write("finished")
        return self._gather()

    # --- Faults ----------------------------------------------------------------------------------

    def _burst(self) -> None:
        for _ in range(self._plan.burst):
            fault = self._chance.fault([fault for _, _, fault in self._on])
            if fault is not None:
                self._strike(fault)
            self._pass(self._chance.pause_s(self._plan.spacing_s))
        while self._on:
            self._pass(self._on[0][0] - time.monotonic())

    def _strike(self, fault: Fault) -> None:
        number = next(self._numbers)
        self._write(
            "fault",
            fault=number,
            kind=fault.kind,
            process=fault.process,
            targets=fault.targets,
            pid=fault.pid,
            life=fault.life,
        )
        fault.strike()
        ends_at = time.monotonic() + self._chance.duration_s(self._plan.duration_scale)
        heapq.heappush(self._on, (ends_at, number, fault))

    def _pass(self, duration_s: float) -> None:
        """Let so much time go by, and mend what is to be mended in it."""
        over_at = time.monotonic() + duration_s
        while True:
            now = time.monotonic()
            while self._on and self._on[0][0] <= now:
                self._mend()
            self._start_again()
            next_at = min(over_at, *(ends_at for ends_at, _, _ in self._on), now + LOOK_S)
            if now >= over_at:
                return
            self._pause.wait(max(0.0, next_at - time.monotonic()))

    def _mend(self) -> None:
        _, number, fault = heapq.heappop(self._on)
        proof = fault.mend()
        self._proved += bool(proof)
        self._write("fault over", fault=number, proof=proof)

    def _start_again(self) -> None:
        """Whoever has ended, and nobody killed it."""
        killed = {name for _, _, fault in self._on if fault.kind == "SIGKILL" for name in fault.targets}
        for name, part in self._service.everybody.items():
            if name not in killed and part.process is not None and not part.is_running:
                self._write("ended by itself", part=name, status=part.process.returncode)
                part.start()

    def _calm(self) -> None:
        over_at = time.monotonic()
        until("the service is whole", self._service.is_whole, WHOLE_LIMIT_S, LOOK_S)
        whole_at = time.monotonic()
        self._write("calm", at=over_at, whole_after_s=round(whole_at - over_at, 3))
        self._pass(self._plan.calm_s)
        self._write("whole", since=round(whole_at, 3))

    # --- Clients, and what they write --------------------------------------------------------------

    def _end_clients(self) -> None:
        for client in self._service.clients.values():
            client.send(signal.SIGTERM)
        for client in self._service.clients.values():
            client.ends(3 * LIMIT_S)

    def _jobs(self) -> int:
        return sum(line["what"] == "job" for line in self._lines_of_clients())

    def _lines_of_clients(self) -> Iterator[dict[str, Any]]:
        for client in self._service.clients.values():
            if client.ledger.exists():
                text = client.ledger.read_text()
                yield from map(json.loads, text[: text.rfind("\n") + 1].splitlines())

    def _write(self, what: str, *, at: float | None = None, **facts: object) -> None:
        line = {"at": round(time.monotonic() if at is None else at, 3), "what": what, **facts}
        with self._own.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")

    def _gather(self) -> Path:
        """One file, by time; what one process has written keeps its order."""
        own = [json.loads(line) for line in self._own.read_text().splitlines()]
        lines = sorted([*own, *self._lines_of_clients()], key=lambda line: line["at"])
        self.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.ledger
