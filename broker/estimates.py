"""How long jobs take, learnt from those that ended: for retry delays and deadlines that cannot be met."""

import math
from collections import deque
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class RunTimes:
    """Work units and seconds of the latest executions on all workers, as these measured them."""

    _observed: deque[Observation] = field(default_factory=lambda: deque(maxlen=OBSERVATIONS))

    def observe(self, parameters: ImageParameters, run_s: float, now: float) -> None:
        self._observed.append(Observation(now, work_units(parameters), run_s))

    def expected_s(self, parameters: ImageParameters, now: float) -> float | None:
        """A straight line through what was observed; None before anything was."""
        observed = self._recent(now)
        if not observed:
            return None
        units = [each.units for each in observed]
        seconds = [each.run_s for each in observed]
        if len(set(units)) == 1:
            return mean(seconds)
        slope, intercept = linear_regression(units, seconds)
        return max(min(seconds), intercept + slope * work_units(parameters))

    def lower_bound_s(self, parameters: ImageParameters, now: float) -> float:
        """The shortest time of any execution as large as the largest one that is not larger than this.

        More work never takes less time on the fastest worker, so this holds without any model of the cost.
        0 where too little was observed.
        """
        observed = self._recent(now)
        wanted = work_units(parameters)
        floor = max((each.units for each in observed if each.units <= wanted), default=None)
        if floor is None:
            return 0.0
        as_large = [each.run_s for each in observed if each.units >= floor]
        return min(as_large) if len(as_large) >= ENOUGH else 0.0

    def _recent(self, now: float) -> list[Observation]:
        return [each for each in self._observed if now - each.at < MAX_AGE_S]
