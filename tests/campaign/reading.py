"""What a ledger says: jobs with their calls, faults, and the times at which the service was whole.

Times are seconds of the machine's monotonic clock, which all its processes share.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


class BadLedger(Exception):
    """A line that cannot be what the campaign wrote."""


@dataclass(slots=True, kw_only=True)
class Call:
    """One RPC of a job."""

    number: int
    at: float
    frontend: str
    answered_at: float | None = None
    """None: its client was killed before there was an answer, or there never was one."""
    code: str = ""
    reason: str = ""
    content: str = ""
    """Digest of what the picture shows."""
    bytes_digest: str = ""
    worker: str = ""
    """Where the image was drawn."""
    attempts: int = 0

    @property
    def is_image(self) -> bool:
        return self.code == "OK"


@dataclass(slots=True, kw_only=True)
class Job:
    """One wish of a client, with an idempotency key of its own."""

    name: str
    client: str
    at: float
    deadline: float
    expected: str
    """Digest of what its picture has to show."""
    calls: dict[int, Call] = field(default_factory=dict)
    ended_at: float | None = None
    outcome: str = ""

    @property
    def images(self) -> list[Call]:
        return [call for call in self.calls.values() if call.is_image]


@dataclass(slots=True, kw_only=True)
class Fault:
    number: int
    kind: str
    """SIGKILL, SIGSTOP or partition."""
    process: str
    """Which kind of process: broker, frontend, worker, engine, forkserver, client; of a partition: link."""
    targets: tuple[str, ...]
    """Components that it concerns."""
    at: float
    until: float | None = None
    proof: str = ""
    """What was seen of it; empty if nothing was."""


@dataclass(slots=True, kw_only=True)
class Ledger:
    wanted_jobs: int = 0
    wanted_faults: int = 0
    began_at: float = 0.0
    finished_at: float | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    whole: list[tuple[float, float]] = field(default_factory=list)
    """When every part was seen to serve, and no fault was on."""
    calms: list[tuple[float, float]] = field(default_factory=list)
    """When the last fault of a burst was over, and how long it took until all was whole."""
    ends: list[str] = field(default_factory=list)
    """Of parts that nobody had killed."""
    standstills: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Of clients, which noticed that they had not run for a while."""

    def stood_still_s(self, client: str, since: float, until: float) -> float:
        stops = self.standstills.get(client, ())
        return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in stops)

    def killed_at(self, client: str, now: float) -> float:
        """When this client, which starts now, was killed; now, if it was not."""
        kills = (
            fault.at
            for fault in self.faults.values()
            if fault.kind == "SIGKILL" and fault.process == "client" and client in fault.targets
        )
        return max(kills, default=now)

    def faults_on(self, target: str, since: float, until: float) -> list[Fault]:
        """Those that concerned this component at any moment between."""
        return [
            fault
            for fault in self.faults.values()
            if target in fault.targets and fault.at <= until and (fault.until or until) >= since
        ]


def read(lines: Iterable[str]) -> Ledger:
    """Raises `BadLedger`."""
    ledger = Ledger()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                _take(ledger, json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise BadLedger(f"line {number}: {error!r}: {line.strip()[:200]}") from error
    return ledger


def _take(ledger: Ledger, line: Mapping[str, Any]) -> None:  # noqa: C901 - one case a kind of line
    at = float(line["at"])
    match line["what"]:
        case "campaign":
            ledger.wanted_jobs, ledger.wanted_faults = int(line["jobs"]), int(line["faults"])
            ledger.began_at = at
        case "job":
            if line["job"] in ledger.jobs:
                raise ValueError("a job with this name was there")
            ledger.jobs[line["job"]] = Job(
                name=line["job"],
                client=line["client"],
                at=at,
                deadline=float(line["deadline"]),
                expected=line["expected"],
            )
        case "call":
            call = Call(number=int(line["call"]), at=at, frontend=line["frontend"])
            ledger.jobs[line["job"]].calls[call.number] = call
        case "answer":
            call = ledger.jobs[line["job"]].calls[int(line["call"])]
            call.answered_at, call.code, call.reason = at, line["code"], line["reason"]
            call.content, call.bytes_digest = line.get("content", ""), line.get("bytes", "")
            call.worker, call.attempts = line.get("worker", ""), int(line.get("attempts", 0))
        case "end":
            job = ledger.jobs[line["job"]]
            job.ended_at, job.outcome = at, line["outcome"]
        case "standstill":
            ledger.standstills.setdefault(line["client"], []).append((float(line["since"]), at))
        case "started":
            ledger.standstills.setdefault(line["client"], []).append(
                (ledger.killed_at(line["client"], at), at)
            )
        case "fault":
            ledger.faults[int(line["fault"])] = Fault(
                number=int(line["fault"]),
                kind=line["kind"],
                process=line["process"],
                targets=tuple(line["targets"]),
                at=at,
            )
        case "fault over":
            fault = ledger.faults[int(line["fault"])]
            fault.until, fault.proof = at, line["proof"]
        case "calm":
            ledger.calms.append((at, float(line["whole_after_s"])))
        case "whole":
            ledger.whole.append((float(line["since"]), at))
        case "ended by itself":
            ledger.ends.append(f"{line['part']}, status {line['status']}")
        case "finished":
            ledger.finished_at = at
        case other:
            raise ValueError(f"no such line: {other!r}")
