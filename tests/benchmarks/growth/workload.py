"""What the simulated peers have to do: how many there are, and how much they ask for."""

import argparse
from dataclasses import dataclass
from typing import Final, Self

CALM_S: Final = 4.0
"""Before the first call: peers find the broker, and it rebuilds."""
PNG_S: Final = 0.02
"""An image is drawn so long before its PNG is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    workers: int
    frontends: int
    jobs_per_s: float
    busy: float
    """Share of the workers' time that jobs take."""
    keyed: float
    """Share of the calls that have an idempotency key."""
    image_bytes: int
    queue_limit: int
    duration_s: float
    """That is measured, after a warm-up."""

    @property
    def draw_s(self) -> float:
        """Mean time of a drawing; each takes between half and one and a half of it."""
        return self.busy * self.workers / self.jobs_per_s

    @property
    def warm_up_s(self) -> float:
        """Until about as many jobs run as will all the time."""
        return CALM_S + 1.0 + 1.5 * self.draw_s

    @classmethod
    def of(cls, given: argparse.Namespace, *, workers: int, jobs_per_s: float) -> Self:
        return cls(
            workers=workers,
            frontends=given.frontends,
            jobs_per_s=jobs_per_s,
            busy=given.busy,
            keyed=given.keyed,
            image_bytes=given.image_bytes,
            queue_limit=given.queue_limit,
            duration_s=given.seconds,
        )
