"""The outcomes that a worker holds, within bounds: unreleased ones, and images kept for repeats."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
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


@dataclass(frozen=True, slots=True)
class _Entry:
    ended: EndedExecution
    until: float
    """It is too old from then on."""


@dataclass(slots=True, kw_only=True)
class OutcomeStore:
    """By execution. Holding never makes a worker refuse a job: kept ones give way first, then the oldest."""

    max_bytes: int
    """Of all together. A single unreleased one may exceed it."""
    max_age_s: float
    """Of an unreleased one, since it was added."""
    kept_max: int
    kept_age_max_s: float
    """Since it was first told to be kept."""
    shed: int = 0
    """Unreleased ones that had to give way, for lack of room or by age."""
    _unreleased: dict[bytes, _Entry] = field(default_factory=dict)
    _kept: dict[bytes, _Entry] = field(default_factory=dict)
    """Both with the oldest first."""

    def __len__(self) -> int:
        """All, released or not."""
        return len(self._unreleased) + len(self._kept)

    def __contains__(self, execution_id: bytes) -> bool:
        return execution_id in self._unreleased or execution_id in self._kept

    @property
    def unreleased(self) -> int:
        """How many somebody may still be waiting for."""
        return len(self._unreleased)

    @property
    def kept(self) -> int:
        """How many are there for repeats alone."""
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        return sum(len(entry.ended.png) for entry in self._entries())

    def add(self, ended: EndedExecution, now: float) -> None:
        self._unreleased[ended.execution_id] = _Entry(ended, now + self.max_age_s)
        self._make_room()

    def get(self, execution_id: bytes) -> EndedExecution | None:
        entry = self._unreleased.get(execution_id) or self._kept.get(execution_id)
        return None if entry is None else entry.ended

    def keep(self, execution_id: bytes, now: float) -> None:
        """Released, but held for repeats. Told again it changes nothing: nothing is kept for ever."""
        entry = self._unreleased.pop(execution_id, None)
        if entry is None or isinstance(entry.ended.result, JobFailed):
            return  # After a failure a repeat is a new job.
        self._kept[execution_id] = _Entry(entry.ended, now + self.kept_age_max_s)
        self._make_room()

    def release(self, execution_id: bytes) -> None:
        self._unreleased.pop(execution_id, None)
        self._kept.pop(execution_id, None)

    def expire(self, now: float) -> None:
        while self._unreleased and now >= _oldest(self._unreleased).until:
            self._shed(_oldest(self._unreleased))
        while self._kept and now >= _oldest(self._kept).until:
            self._drop_oldest_kept()

    def next_expiry(self) -> float | None:
        instants = [_oldest(entries).until for entries in (self._unreleased, self._kept) if entries]
        return min(instants, default=None)

    def listed(self) -> tuple[HeldOutcome, ...]:
        """For a report, as many as fit: unreleased ones, oldest first, then kept ones, newest first."""
        unreleased = (_listing(entry.ended, released=False) for entry in self._unreleased.values())
        kept = (_listing(entry.ended, released=True) for entry in reversed(self._kept.values()))
        return tuple(islice(chain(unreleased, kept), MAX_LISTED_OUTCOMES))

    def check_invariants(self) -> None:
        """Raise AssertionError if the state contradicts itself."""
        assert not self._unreleased.keys() & self._kept.keys(), "an outcome both unreleased and kept"
        assert len(self._kept) <= self.kept_max, "too many kept"
        assert self.size_bytes <= self.max_bytes or (self.unreleased, self.kept) == (1, 0), "too many bytes"
        assert all(isinstance(entry.ended.result, ImageMade) for entry in self._kept.values()), (
            "a failure is kept"
        )

    def _entries(self) -> Iterator[_Entry]:
        return chain(self._unreleased.values(), self._kept.values())

    def _make_room(self) -> None:
        while self._kept and (len(self._kept) > self.kept_max or self.size_bytes > self.max_bytes):
            self._drop_oldest_kept()
        while self.size_bytes > self.max_bytes and len(self._unreleased) > 1:
            self._shed(_oldest(self._unreleased))

    def _drop_oldest_kept(self) -> None:
        del self._kept[next(iter(self._kept))]

    def _shed(self, entry: _Entry) -> None:
        del self._unreleased[entry.ended.execution_id]
        self.shed += 1


def _oldest(entries: dict[bytes, _Entry]) -> _Entry:
    return next(iter(entries.values()))


def _listing(ended: EndedExecution, *, released: bool) -> HeldOutcome:
    return HeldOutcome(
        execution_id=ended.execution_id,
        claim=ended.claim,
        failure=ended.result.code if isinstance(ended.result, JobFailed) else None,
        size_bytes=len(ended.png),
        released=released,
    )
