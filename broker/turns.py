"""Whose queued job is next: the API keys take turns."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest


@dataclass(slots=True)
class Turns:
    """The queued jobs by API key, and the keys in the order of their turns.

    A key goes to the end of the round when its first job is queued, and whenever one of its jobs was begun.
    So while a key has a queued job, no other key begins two: however many jobs that one brings, and whether
    it queues them at once or one after the other.
    """

    _jobs_of: dict[str, dict[bytes, None]] = field(default_factory=dict)
    _length: int = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        """All `job_id`s in the order in which they are to begin: within a key, who came first goes first."""
        for one_round in zip_longest(*self._jobs_of.values()):
            yield from (job_id for job_id in one_round if job_id is not None)

    def first(self) -> bytes | None:
        """The `job_id` of the job that is to begin next."""
        return next((job_id for jobs in self._jobs_of.values() for job_id in jobs), None)

    def count(self, key_fingerprint: str) -> int:
        """The key's queued jobs."""
        return len(self._jobs_of.get(key_fingerprint, ()))

    def join(self, key_fingerprint: str, job_id: bytes) -> None:
        self._jobs_of.setdefault(key_fingerprint, {})[job_id] = None
        self._length += 1

    def leave(self, key_fingerprint: str, job_id: bytes, *, has_begun: bool) -> None:
        jobs = self._jobs_of[key_fingerprint]
        del jobs[job_id]
        self._length -= 1
        if has_begun or not jobs:
            del self._jobs_of[key_fingerprint]
        if has_begun and jobs:
            self._jobs_of[key_fingerprint] = jobs
