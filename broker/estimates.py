"""How long jobs take, learnt from those that ended: for retry delays and deadlines that cannot be met."""

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import linear_regression, mean
from typing import Final

from proto.messages import ImageParameters

OBSERVATIONS: Final = 64
MAX_AGE_S: Final = 300.0
"""Older ones are forgotten: one slow spell must not refuse deadlines for ever."""
ENOUGH: Final = 3
"""Observations without which nobody is told that a deadline is too short."""
PATCH_PIXELS: Final = 16
"""FLUX works on patches of 16 x 16 pixels; its work grows with their number, and with the steps."""


def work_units(parameters: ImageParameters) -> int:
    """Patches x steps of an image."""
    patches = math.ceil(parameters.height / PATCH_PIXELS) * math.ceil(parameters.width / PATCH_PIXELS)
    return patches * parameters.steps


@dataclass(frozen=True, slots=True)
class Observation:
    at: float
    units: int
    run_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """Through what was observed."""

    slope: float
    """Seconds for each work unit."""
    intercept_s: float
    shortest_s: float
    """Of all observed."""

    def at(self, units: int) -> float:
        return max(self.shortest_s, self.intercept_s + self.slope * units)


@dataclass(slots=True)
class RunTimes:
    """Work units and seconds of the latest executions on all workers, as these measured them."""

    _observed: deque[Observation] = field(default_factory=lambda: deque(maxlen=OBSERVATIONS))
    _line: Line | None = None
    """What was concluded, until there is something new; likewise below."""
    _bounds: list[tuple[int, float]] | None = None
    """By the work units of all observed, ascending."""

    def observe(self, parameters: ImageParameters, run_s: float, now: float) -> None:
        self._observed.append(Observation(now, work_units(parameters), run_s))
        self._conclude_anew()

    def expected_s(self, parameters: ImageParameters, now: float) -> float | None:
        """A straight line through what was observed; None before anything was."""
        self._forget_old(now)
        if not self._observed:
            return None
        if self._line is None:
            self._line = self._fitted()
        return self._line.at(work_units(parameters))

    def _fitted(self) -> Line:
        units = [each.units for each in self._observed]
        seconds = [each.run_s for each in self._observed]
        if len(set(units)) == 1:
            return Line(0.0, mean(seconds), min(seconds))
        slope, intercept_s = linear_regression(units, seconds)
        return Line(slope, intercept_s, min(seconds))

    def lower_bound_s(self, parameters: ImageParameters, now: float) -> float:
        """The shortest time of any execution as large as the largest one that is not larger than this.

        More work never takes less time on the fastest worker, so this holds without any model of the cost.
        0 where too little was observed.
        """
        self._forget_old(now)
        if self._bounds is None:
            self._bounds = self._lower_bounds()
        place = bisect_right(self._bounds, work_units(parameters), key=itemgetter(0))
        return self._bounds[place - 1][1] if place else 0.0

    def _lower_bounds(self) -> list[tuple[int, float]]:
        bounds: dict[int, float] = {}
        shortest_s = math.inf
        for count, each in enumerate(sorted(self._observed, key=lambda seen: -seen.units), start=1):
            shortest_s = min(shortest_s, each.run_s)
            bounds[each.units] = shortest_s if count >= ENOUGH else 0.0
        return list(reversed(bounds.items()))

    def _forget_old(self, now: float) -> None:
        while self._observed and now - self._observed[0].at >= MAX_AGE_S:
            self._observed.popleft()
            self._conclude_anew()

    def _conclude_anew(self) -> None:
        self._line = None
        self._bounds = None


@dataclass(slots=True)
class NextFree:
    """When the first busy worker can be expected to be free.

    All busy workers have to be looked at for that: once in a while, not for each call that is refused.
    """

    good_for_s: float
    _free_at: float = 0.0
    _looked_at: float = -math.inf

    def wait_s(self, now: float, look: Callable[[], float]) -> float:
        """Seconds until then. `look` tells the same at this moment."""
        if now - self._looked_at >= self.good_for_s:
            self._free_at, self._looked_at = now + look(), now
        return self._free_at - now
