"""The executions whose image is drawn and whose PNG is being made, beside the next job in the slot. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpu_worker.engines.engine import EngineJob
from proto.messages import HeldOutcome, JobClaim, ModelCard

UNFINISHED_BYTES = 0
"""The size in a report of a PNG that is not there yet; no finished one is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """An image on its way from pixels to PNG."""

    job: EngineJob
    claim: JobClaim
    """As the broker told it last."""
    inference_time_s: float
    model: ModelCard | None
    """That drew it."""
    overdue_at: float
    """Whoever makes the PNG hangs if it is not there by then."""
    steps_time_s: float | None = None


@dataclass(slots=True)
class Encodings:
    """By execution, the oldest first. The engine process sees to it that there are few."""

    _entries: dict[bytes, Encoding] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, execution_id: bytes) -> bool:
        return execution_id in self._entries

    def __iter__(self) -> Iterator[Encoding]:
        return iter(tuple(self._entries.values()))

    def add(self, encoding: Encoding) -> None:
        self._entries[encoding.job.execution_id] = encoding

    def pop(self, execution_id: bytes) -> Encoding | None:
        return self._entries.pop(execution_id, None)

    def overdue(self, now: float) -> Encoding | None:
        return next((each for each in self if now >= each.overdue_at), None)

    def next_deadline(self) -> float | None:
        return min((each.overdue_at for each in self), default=None)

    def listed(self) -> tuple[HeldOutcome, ...]:
        """For a report: held as an image, and still without bytes."""
        return tuple(
            HeldOutcome(
                execution_id=execution_id,
                claim=encoding.claim,
                failure=None,
                size_bytes=UNFINISHED_BYTES,
            )
            for execution_id, encoding in self._entries.items()
        )
