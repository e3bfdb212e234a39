"""How long jobs take, learnt from those that ended: for retry delays and deadlines that cannot be met."""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import linear_regression, mean
from typing import Final

from proto.messages import ImageParameters

OBSERVATIONS: Final = 64
PATCH_PIXELS: Final = 16
"""FLUX works on patches of 16 x 16 pixels; its work grows with their number, and with the steps."""


def work_units(parameters: ImageParameters) -> int:
    """Patches x steps of an image."""
    patches = math.ceil(parameters.height / PATCH_PIXELS) * math.ceil(parameters.width / PATCH_PIXELS)
    return patches * parameters.steps


@dataclass(slots=True)
class RunTimes:
    """Work units and seconds of the latest executions, of all workers together."""

    _observed: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=OBSERVATIONS))

    def observe(self, parameters: ImageParameters, run_s: float) -> None:
        self._observed.append((work_units(parameters), run_s))

    def expected_s(self, parameters: ImageParameters) -> float | None:
        """A straight line through what was observed; None before anything was."""
        if not self._observed:
            return None
        units = [unit for unit, _ in self._observed]
        seconds = [run_s for _, run_s in self._observed]
        if len(set(units)) == 1:
            return mean(seconds)
        slope, intercept = linear_regression(units, seconds)
        return max(min(seconds), intercept + slope * work_units(parameters))

    def lower_bound_s(self, parameters: ImageParameters) -> float:
        """The shortest time of any execution as large as the largest one that is not larger than this.

        More work never takes less time on the fastest worker, so this holds without any model of the cost.
        0 where nothing as small was observed.
        """
        wanted = work_units(parameters)
        smaller = [unit for unit, _ in self._observed if unit <= wanted]
        if not smaller:
            return 0.0
        return min(run_s for unit, run_s in self._observed if unit >= max(smaller))
