"""A ledger in figures: faults by kind, outcomes, calls, latencies, attempts."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from campaign.reading import Ledger

KINDS: Final = ("SIGKILL", "SIGSTOP", "partition")


def account(ledger: Ledger) -> str:
    """Tables in Markdown."""
    return "\n\n".join((_faults(ledger), _jobs(ledger), _times(ledger)))


def _faults(ledger: Ledger) -> str:
    proved = [fault for fault in ledger.faults.values() if fault.proof]
    count = Counter((fault.process, fault.kind) for fault in proved)
    processes = sorted({fault.process for fault in proved})
    rows = [[process, *(count[process, kind] for kind in KINDS)] for process in processes]
    total = ["all", *(sum(count[process, kind] for process in processes) for kind in KINDS)]
    unproved = len(ledger.faults) - len(proved)
    note = f"{len(proved)} faults, of which {_overlapping(ledger)} began while another was on"
    note += f"; {unproved} more left no trace, and do not count" if unproved else ""
    return f"{note}.\n\n{_table(['', *KINDS], [*rows, total])}"


def _overlapping(ledger: Ledger) -> int:
    faults = sorted(ledger.faults.values(), key=lambda fault: fault.at)
    latest, found = 0.0, 0
    for fault in faults:
        found += bool(fault.proof) and fault.at < latest
        latest = max(latest, fault.until or fault.at)
    return found


def _jobs(ledger: Ledger) -> str:
    outcomes = Counter(job.outcome or "none" for job in ledger.jobs.values())
    answers = Counter(
        f"{call.code} {call.reason}".strip() if call.answered_at is not None else "none: client killed"
        for job in ledger.jobs.values()
        for call in job.calls.values()
    )
    attempts = Counter(call.attempts for job in ledger.jobs.values() for call in job.images)
    return "\n\n".join(
        (
            f"{len(ledger.jobs)} jobs, by how they ended:\n\n{_counts(outcomes)}",
            f"{answers.total()} calls, by their answer:\n\n{_counts(answers)}",
            f"Executions begun of a job, of the images:\n\n{_counts(attempts)}",
        )
    )


def _times(ledger: Ledger) -> str:
    jobs = [job for job in ledger.jobs.values() if job.images and job.ended_at is not None]
    rows = [
        _percentiles("a job, from its first call to its end", [(job.ended_at or 0) - job.at for job in jobs]),
        _percentiles(
            "the same, begun while all was whole",
            [
                (job.ended_at or 0) - job.at
                for job in jobs
                if any(since <= job.at <= until for since, until in ledger.whole)
            ],
        ),
        _percentiles("all whole after the last fault of a burst", [took_s for _, took_s in ledger.calms]),
    ]
    lasted_s = (ledger.finished_at or ledger.began_at) - ledger.began_at
    table = _table(["seconds", "number", "p50", "p90", "p99", "most"], rows)
    return f"{table}\n\nIt took {lasted_s / 60:.0f} minutes."


def _percentiles(name: str, seconds: Sequence[float]) -> list[object]:
    if len(seconds) < 2:
        return [name, len(seconds), *(f"{each:.2f}" for each in [*seconds, *seconds, *seconds, *seconds])]
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    shown = (statistics.median(seconds), cuts[89], cuts[98], max(seconds))
    return [name, len(seconds), *(f"{each:.2f}" for each in shown)]


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return _table(["", "number"], [[name, count] for name, count in ordered])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
