"""When the open calls end, the earliest first. Pure."""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from math import inf


@dataclass(slots=True)
class Deadlines:
    """Of each `job_id` the instant of its end. Looking at the first costs nothing, however many there are."""

    _order: list[tuple[float, bytes]] = field(default_factory=list)

    def add(self, job_id: bytes, deadline: float) -> None:
        insort(self._order, (deadline, job_id))

    def remove(self, job_id: bytes, deadline: float) -> None:
        """Raises LookupError if it is not there, with this deadline."""
        place = bisect_left(self._order, (deadline, job_id))
        if self._order[place : place + 1] != [(deadline, job_id)]:
            raise LookupError(job_id.hex())
        del self._order[place]

    def first(self) -> float:
        """Infinity if there is none."""
        return self._order[0][0] if self._order else inf

    def passed(self, now: float) -> list[bytes]:
        """Of those the `job_id`s, the earliest first."""
        due: list[bytes] = []
        for deadline, job_id in self._order:
            if deadline > now:
                break
            due.append(job_id)
        return due
