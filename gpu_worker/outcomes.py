"""The outcomes that a worker holds until they are released, bounded by bytes and age."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from proto.messages import Body, HeldOutcome, ImageMade, JobClaim, JobFailed

MAX_LISTED_OUTCOMES: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedExecution:
    """How an execution ended: with an image and its PNG, or with a failure and no bytes."""

    execution_id: bytes
    claim: JobClaim
    result: ImageMade | JobFailed
    png: Body = b""


@dataclass(slots=True, kw_only=True)
class OutcomeStore:
    """By execution, oldest first. Holding never makes a worker refuse a job: the oldest give way."""

    max_bytes: int
    max_age_s: float
    dropped: int = 0
    """Given way before they were released."""
    _held: dict[bytes, tuple[EndedExecution, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, execution_id: bytes) -> bool:
        return execution_id in self._held

    @property
    def size_bytes(self) -> int:
        return sum(len(ended.png) for ended, _ in self._held.values())

    def add(self, ended: EndedExecution, now: float) -> None:
        self._held[ended.execution_id] = (ended, now)
        while self.size_bytes > self.max_bytes and len(self._held) > 1:
            self._drop_oldest()

    def get(self, execution_id: bytes) -> EndedExecution | None:
        entry = self._held.get(execution_id)
        return None if entry is None else entry[0]

    def release(self, execution_id: bytes) -> None:
        self._held.pop(execution_id, None)

    def expire(self, now: float) -> None:
        while self._held and now >= self._oldest_until():
            self._drop_oldest()

    def next_expiry(self) -> float | None:
        return self._oldest_until() if self._held else None

    def listed(self) -> tuple[HeldOutcome, ...]:
        """For a report: the oldest, as many as fit into one."""
        return tuple(
            HeldOutcome(
                execution_id=ended.execution_id,
                claim=ended.claim,
                failure=ended.result.code if isinstance(ended.result, JobFailed) else None,
                size_bytes=len(ended.png),
            )
            for ended, _ in islice(self._held.values(), MAX_LISTED_OUTCOMES)
        )

    def _oldest_until(self) -> float:
        return next(iter(self._held.values()))[1] + self.max_age_s

    def _drop_oldest(self) -> None:
        del self._held[next(iter(self._held))]
        self.dropped += 1
