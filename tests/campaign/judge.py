"""Judges the ledger of a campaign: `python -m campaign.judge LEDGER`; exit status 1 if a promise was broken.

It knows the public contract (README.md) and nothing of the product or of what ran the campaign. A *job* is
one wish of a client, with an idempotency key, parameters and a deadline; it is asked for in one or more
*calls*, repeated after UNAVAILABLE and RESOURCE_EXHAUSTED, as a good client does. Broken is:

- `lost`: a job that was begun has no end in the ledger; or it ended, with time left, in a status after which
  the caller was to try again. So each job has its image, a failure that the contract names, or a deadline
  that is over.
- `hung`: a call without an answer whose client was not killed.
- `late`: an answer, or a job's end, more than `LATE_S` after the deadline. What a client itself stood still,
  dead, frozen or without a processor, is added.
- `wrong content`: the picture shows another prompt, size, number of steps, guidance or seed than asked for.
- `other bytes`: two images for one idempotency key differ, though nothing happened, from `BEFORE_S` before
  the first until the second, to the worker that drew the first, which keeps it for repeats.
- `unnamed status`: a status and reason that the contract does not name.
- `unexplained failure`: a job was ended as poison, though fewer than two engine processes were killed or
  frozen while it was open; or lost its workers while nothing was wrong.
- `neglected`: the service was whole, and a job stayed open for more than `NEGLECTED_S` of that time.
- `not whole in time`: the last fault was over, and `WHOLE_WITHIN_S` later some part did not serve.
- `ended by itself`: a part of the service ended, and nobody had killed it.
- `too little`: fewer jobs, or fewer faults that are proved to have happened, than the campaign was to have;
  or it did not come to its end.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from campaign.account import account
from campaign.reading import BadLedger, Call, Job, Ledger, read

LATE_S: Final = 1.0
BEFORE_S: Final = 15.0
"""After a fault so long a broker may still think that a worker is lost, and have its images drawn again."""
NEGLECTED_S: Final = 10.0
WHOLE_WITHIN_S: Final = 90.0
"""Mostly starts of Python processes: a second on an idle core, half a minute where 40 others run."""
DEATHS_OF_POISON: Final = 2
SHOWN: Final = 20

REPEATABLE: Final = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})
HOPELESS: Final = frozenset({"DEADLINE_TOO_SHORT", "OUT_OF_MEMORY"})
"""Reasons of RESOURCE_EXHAUSTED after which a repeat is no use."""
CONTRACT: Final = frozenset(
    {
        ("OK", ""),
        *(
            ("RESOURCE_EXHAUSTED", reason)
            for reason in (
                "ALL_WORKERS_BUSY",
                "BROKER_FULL",
                "CLIENT_BUSY",
                "CLIENT_QUEUE_FULL",
                "DEADLINE_TOO_SHORT",
                "FRONTEND_FULL",
                "OUT_OF_MEMORY",
            )
        ),
        *(
            ("UNAVAILABLE", reason)
            for reason in (
                "",  # gRPC's own word: there is no frontend, or no way to it
                "BROKER_DRAINING",
                "BROKER_UNREACHABLE",
                "DEVICE_POISONED",
                "ENGINE_CRASHED",
                "ENGINE_HUNG",
                "FRONTEND_DRAINING",
                "NO_WORKERS",
                "WORKERS_NOT_READY",
                "WORKER_LOST",
            )
        ),
        ("INTERNAL", "POISON_JOB"),
        ("DEADLINE_EXCEEDED", ""),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    }
)
NEEDS_A_FAULT: Final = frozenset({"WORKER_LOST", "ENGINE_CRASHED", "ENGINE_HUNG", "DEVICE_POISONED"})


class Breach(StrEnum):
    LOST = "lost"
    HUNG = "hung"
    LATE = "late"
    WRONG_CONTENT = "wrong content"
    OTHER_BYTES = "other bytes"
    UNNAMED_STATUS = "unnamed status"
    UNEXPLAINED_FAILURE = "unexplained failure"
    NEGLECTED = "neglected"
    NOT_WHOLE_IN_TIME = "not whole in time"
    ENDED_BY_ITSELF = "ended by itself"
    TOO_LITTLE = "too little"


@dataclass(frozen=True, slots=True)
class Verdict:
    breach: Breach
    what: str


def judge(ledger: Ledger) -> list[Verdict]:
    """All that is broken; empty if every promise was kept."""
    found = [verdict for job in ledger.jobs.values() for rule in _OF_A_JOB for verdict in rule(job, ledger)]
    ends = [Verdict(Breach.ENDED_BY_ITSELF, what) for what in ledger.ends]
    return [*found, *_not_whole(ledger), *ends, *_too_little(ledger)]


def _lost(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    if job.ended_at is None:
        yield Verdict(Breach.LOST, f"{job.name} has no end")
        return
    answers = [call for call in job.calls.values() if call.answered_at is not None]
    if job.images or job.ended_at >= job.deadline:
        return
    if not answers or _asks_for_a_repeat(answers[-1]):
        early_s = job.deadline - job.ended_at
        yield Verdict(Breach.LOST, f"{job.name} ended {early_s:.1f} s before its deadline: {job.outcome}")


def _asks_for_a_repeat(call: Call) -> bool:
    return call.code in REPEATABLE and call.reason not in HOPELESS


def _late(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    for call in job.calls.values():
        if call.answered_at is not None:
            yield from _if_late(f"{job.name}, call {call.number}", call.answered_at, job, ledger)
        elif not _client_was_killed(job, call, ledger):
            yield Verdict(Breach.HUNG, f"{job.name}, call {call.number} to {call.frontend}")
    if job.ended_at is not None:
        yield from _if_late(job.name, job.ended_at, job, ledger)


def _if_late(what: str, ended_at: float, job: Job, ledger: Ledger) -> Iterator[Verdict]:
    late_s = ended_at - job.deadline
    if late_s - ledger.stood_still_s(job.client, job.deadline - LATE_S, ended_at) > LATE_S:
        yield Verdict(Breach.LATE, f"{what} ended {late_s:.1f} s after its deadline")


def _client_was_killed(job: Job, call: Call, ledger: Ledger) -> bool:
    until = ledger.finished_at or job.deadline
    faults = ledger.faults_on(job.client, call.at, min(until, job.deadline + LATE_S))
    return any(fault.kind == "SIGKILL" and fault.process == "client" for fault in faults)


def _wrong_content(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    for call in job.images:
        if call.content != job.expected:
            yield Verdict(
                Breach.WRONG_CONTENT, f"{job.name}, call {call.number}: {call.content}, not {job.expected}"
            )


def _other_bytes(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    images = sorted(job.images, key=lambda call: call.answered_at or 0.0)
    for first, second in itertools.pairwise(images):
        if first.bytes_digest == second.bytes_digest:
            continue
        begun, over = (first.answered_at or 0.0) - BEFORE_S, second.answered_at or 0.0
        faults = ledger.faults_on(first.worker, begun, over)
        if all(fault.process == "engine" for fault in faults):  # images are in the worker's own process
            yield Verdict(
                Breach.OTHER_BYTES,
                f"{job.name}, call {first.number} of {first.worker}, {second.number} of {second.worker}",
            )


def _unnamed_status(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    for call in job.calls.values():
        if call.answered_at is not None and (call.code, call.reason) not in CONTRACT:
            yield Verdict(
                Breach.UNNAMED_STATUS, f"{job.name}, call {call.number}: {call.code} {call.reason!r}"
            )


def _unexplained(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    for call in job.calls.values():
        until = call.answered_at or call.at
        if call.reason == "POISON_JOB":
            deaths = [
                fault
                for fault in ledger.faults.values()
                if fault.process in {"engine", "forkserver"}
                and fault.at <= until
                and (fault.until or until) >= job.at - LATE_S
            ]
            if len(deaths) < DEATHS_OF_POISON:
                yield Verdict(
                    Breach.UNEXPLAINED_FAILURE,
                    f"{job.name} is poison after {len(deaths)} deaths of engine processes",
                )
        elif call.reason in NEEDS_A_FAULT and not any(
            fault.at <= until and (fault.until or until) >= job.at - BEFORE_S
            for fault in ledger.faults.values()
        ):
            yield Verdict(Breach.UNEXPLAINED_FAILURE, f"{job.name}: {call.reason} without any fault")


def _neglected(job: Job, ledger: Ledger) -> Iterator[Verdict]:
    ended_at = job.deadline if job.ended_at is None else job.ended_at
    for since, until in ledger.whole:
        open_s = min(until, ended_at) - max(since, job.at)
        open_s -= ledger.stood_still_s(job.client, since, until)
        if open_s > NEGLECTED_S:
            yield Verdict(Breach.NEGLECTED, f"{job.name} was open for {open_s:.1f} s of a whole service")


_OF_A_JOB: Final[tuple[Callable[[Job, Ledger], Iterator[Verdict]], ...]] = (
    _lost,
    _late,
    _wrong_content,
    _other_bytes,
    _unnamed_status,
    _unexplained,
    _neglected,
)


def _not_whole(ledger: Ledger) -> Iterator[Verdict]:
    for at, took_s in ledger.calms:
        if took_s > WHOLE_WITHIN_S:
            yield Verdict(
                Breach.NOT_WHOLE_IN_TIME,
                f"{took_s:.1f} s after the faults that were over at {at - ledger.began_at:.0f} s",
            )
    for fault in ledger.faults.values():
        for since, until in ledger.whole:
            if fault.at < until and (fault.until is None or fault.until > since):
                yield Verdict(
                    Breach.NOT_WHOLE_IN_TIME, f"fault {fault.number} was on while all was said to be whole"
                )


def _too_little(ledger: Ledger) -> Iterator[Verdict]:
    proved = sum(bool(fault.proof) for fault in ledger.faults.values())
    if proved < ledger.wanted_faults:
        yield Verdict(Breach.TOO_LITTLE, f"{proved} of {ledger.wanted_faults} faults are proved")
    if len(ledger.jobs) < ledger.wanted_jobs:
        yield Verdict(Breach.TOO_LITTLE, f"{len(ledger.jobs)} of {ledger.wanted_jobs} jobs")
    if ledger.finished_at is None:
        yield Verdict(Breach.TOO_LITTLE, "the campaign did not come to its end")
    if not ledger.whole:
        yield Verdict(Breach.TOO_LITTLE, "the service was never seen whole: it could neglect everything")


def main() -> int:
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} LEDGER", file=sys.stderr)
        return 2
    try:
        ledger = read(Path(sys.argv[1]).read_text().splitlines())
    except (OSError, BadLedger) as error:
        print(f"{sys.argv[1]}: {error}", file=sys.stderr)
        return 2
    found = judge(ledger)
    print(account(ledger))
    for verdict in found[:SHOWN]:
        print(f"{verdict.breach}: {verdict.what}", file=sys.stderr)
    counts = {breach: sum(verdict.breach is breach for verdict in found) for breach in Breach}
    print("\n" + ", ".join(f"{count} {breach}" for breach, count in counts.items()))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
