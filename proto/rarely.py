"""What happens often and is logged rarely: every time is counted, few make a line."""

from collections import deque
from collections.abc import Hashable
from typing import Final

SILENCE_S: Final = 60.0
"""Between two lines about the same thing."""
MAX_THINGS: Final = 256
"""That are told apart; the one that happened longest ago is forgotten."""
LINES_MAX: Final = 64
"""Within `SILENCE_S`, about all things together: who makes up a new one each time must not fill the disk."""


class Rarely:
    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}
        self._written_at: dict[Hashable, float] = {}
        self._lines_at: deque[float] = deque([-SILENCE_S] * LINES_MAX, maxlen=LINES_MAX)
        self.total = 0

    def count(self, thing: Hashable, now: float) -> int | None:
        """How often it has happened, if a line about it is due; otherwise None."""
        self.total += 1
        times = self._counts[thing] = self._counts.pop(thing, 0) + 1
        while len(self._counts) > MAX_THINGS:
            oldest = next(iter(self._counts))
            del self._counts[oldest]
            self._written_at.pop(oldest, None)
        if now - max(self._written_at.get(thing, -SILENCE_S), self._lines_at[0]) < SILENCE_S:
            return None
        self._written_at[thing] = now
        self._lines_at.append(now)
        return times
