"""What happened, in lines that a person can follow: who did or said what, and when."""

from typing import Final

from proto.messages import (
    FrontendReport,
    FrontendView,
    JobStatus,
    Leave,
    Message,
    Outcome,
    Refuse,
    Start,
    Submit,
    WorkerReport,
    WorkerView,
)
from proto.notes import Note

RANDOM_PART: Final = 6
"""Characters of an identifier before its label."""
ANSWERED_BEFORE: Final = "-"


def labelled(randomness: bytes, label: str) -> bytes:
    """16 bytes that sort at random and can be read."""
    return f"{randomness.hex()[:RANDOM_PART]}:{label}".encode()[:16].ljust(16, b".")


def short(identifier: bytes | None) -> str:
    if identifier is None:
        return "nothing"
    label = identifier[RANDOM_PART + 1 :].rstrip(b".").decode("ascii", "replace")
    return label if identifier[RANDOM_PART : RANDOM_PART + 1] == b":" else identifier.hex()[:6]


def told_note(note: Note) -> str:
    fields = " ".join(
        f"{key}={short(value) if isinstance(value, bytes) else value}" for key, value in note.fields.items()
    )
    return f"({note.event}{' ' if fields else ''}{fields})"


def told_message(message: Message) -> str | None:
    """None for what only repeats itself."""
    match message:
        case Submit(claim=claim, accepted=accepted, execution_id=execution_id):
            again = f" again, accepted, last seen as {short(execution_id)}" if accepted else ""
            hashed = f" repeat key {claim.idempotency_hash.hex()[:4]}" if claim.idempotency_hash else ""
            hashed += " detached" if claim.detach else ""
            return (
                f"SUBMIT {short(claim.job_id)} of {claim.key_fingerprint}{hashed}{again}"
                f" attempts {claim.attempts} crashes {claim.crashes} {claim.remaining_ms / 1000:.1f} s left"
            )
        case Start(execution_id=execution_id, claim=claim):
            return (
                f"START {short(execution_id)} of {short(claim.job_id)} attempts {claim.attempts}"
                f" crashes {claim.crashes}{' detached' if claim.detach else ''}"
                f" {claim.remaining_ms / 1000:.1f} s left"
            )
        case Outcome(execution_id=execution_id, job_id=job_id, failure=failure, crashes=crashes):
            what = "image" if failure is None else failure.code.value
            return f"OUTCOME {what} {short(execution_id)} for {short(job_id)} crashes {crashes}"
        case Refuse(reason=reason, job_id=job_id, execution_id=execution_id, detail=detail):
            return f"REFUSE {reason.value} {short(job_id)} {short(execution_id)} {detail}"
        case Leave(reason=reason):
            return f"LEAVE {reason}"
        case _:
            return _told_state(message)


def _told_state(message: Message) -> str | None:
    match message:
        case WorkerReport(running=running, held=held, phase=phase, seq=seq):
            runs = "" if running is None else f" runs {short(running.execution_id)}"
            runs += " (stopping)" if running is not None and running.stopping else ""
            holds = " ".join(
                f"{short(outcome.execution_id)}{'+' if outcome.failure is None else '!'}"
                f"{'k' if outcome.released else ''}"
                for outcome in held
            )
            return f"report {seq} {phase.value}{runs}{' holds ' if holds else ''}{holds}"
        case WorkerView(cancel=cancel, release=release, keep=keep, resend=resend, echo=echo):
            lists = (("cancel", cancel), ("release", release), ("keep", keep), ("resend", resend))
            wishes = [f"{name} {' '.join(short(each) for each in ids)}" for name, ids in lists if ids]
            return f"view of {echo} {', '.join(wishes)}" if wishes else None
        case FrontendReport(jobs=jobs, seq=seq):
            return f"report {seq} waits for {' '.join(short(job_id) for job_id in jobs) or 'nothing'}"
        case FrontendView(jobs=jobs, echo=echo, ready_workers=ready) if jobs:
            return f"view of {echo}, {ready} ready, {', '.join(_told_status(status) for status in jobs)}"
        case _:
            return None


def _told_status(status: JobStatus) -> str:
    execution = f" as {short(status.execution_id)}" if status.execution_id else ""
    return f"{short(status.job_id)} {status.state.value}{execution} ({status.attempts}/{status.crashes})"


class Story:
    """Costs time, so that most worlds have none; any world can be told by running it again."""

    def __init__(self, *, is_told: bool) -> None:
        self.is_told = is_told
        self.lines: list[str] = []

    def write(self, instant: float, who: str, what: str) -> None:
        self.lines.append(f"{instant:9.3f} {who:10} {what}")

    def tail(self, lines: int) -> str:
        return "\n".join(self.lines[-lines:])
