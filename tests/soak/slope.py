"""How a figure grows with the jobs, whatever single samples say."""

from collections.abc import Sequence
from typing import Final

import numpy as np

WARM_UP_SHARE: Final = 0.1
"""Of the samples, which are left out: caches fill, and allocators take what they then keep."""
SAMPLES_MAX: Final = 2000
"""More are thinned out: there are as many slopes as pairs."""


def theil_sen(jobs: Sequence[float], values: Sequence[float]) -> float:
    """The median slope of all pairs of samples, after the warm-up, in units of `values` for each 10,000 jobs.

    Nearly a third of the samples may lie anywhere without changing it (Sen 1968, "Estimates of the regression
    coefficient based on Kendall's tau").
    Raises `ValueError`: fewer than two samples differ in their jobs.
    """
    x, y = (_after_warm_up(np.asarray(each, dtype=float)) for each in (jobs, values))
    first, second = np.triu_indices(len(x), k=1)
    apart = x[second] != x[first]
    if not apart.any():
        raise ValueError("a slope needs two samples at different numbers of jobs")
    rises, runs = (y[second] - y[first])[apart], (x[second] - x[first])[apart]
    return float(np.median(rises / runs)) * 10_000


def _after_warm_up(samples: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    kept = samples[round(len(samples) * WARM_UP_SHARE) :]
    return kept[:: len(kept) // SAMPLES_MAX + 1]
