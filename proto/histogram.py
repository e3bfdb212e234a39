"""Counts of values by size, as Prometheus understands them. Pure."""

from bisect import bisect_left
from collections.abc import Iterable

from proto.messages import Distribution


class Histogram:
    """Counters only: nothing in it ever becomes less."""

    def __init__(self, bounds: Iterable[float]) -> None:
        """`bounds` are the upper ends of the buckets, each included, in ascending order."""
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """`value` is not negative: with one that is, the sum would be no counter."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def distribution(self) -> Distribution:
        return Distribution(bounds=self._bounds, counts=tuple(self._counts), sum=self._sum)
