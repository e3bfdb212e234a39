"""How the processes have grown, and whether that is too much."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from soak.sizes import Sample
from soak.slope import theil_sen

SLOPE_MAX_MB: Final = 1.0
"""Of a process's own memory, in 10,000 jobs."""
DESCRIPTORS_SLOPE_MAX: Final = 1.0
"""In 10,000 jobs."""
LIFE_SHARE_MIN: Final = 0.2
"""Of all jobs: what has lived shorter is still warming up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Of one process; slopes are for each 10,000 jobs."""

    process: str
    pid: int
    jobs: int
    uss_mb: tuple[float, float]
    """The least and the most."""
    uss_slope: float
    pss_slope: float
    descriptors: tuple[int, int]
    descriptors_slope: float

    @classmethod
    def of(cls, life: Sequence[Sample]) -> Self:
        jobs = [sample.jobs for sample in life]
        uss = [sample.uss_mb for sample in life]
        descriptors = [sample.descriptors for sample in life]
        return cls(
            process=life[0].process,
            pid=life[0].pid,
            jobs=jobs[-1] - jobs[0],
            uss_mb=(min(uss), max(uss)),
            uss_slope=theil_sen(jobs, uss),
            pss_slope=theil_sen(jobs, [sample.pss_mb for sample in life]),
            descriptors=(min(descriptors), max(descriptors)),
            descriptors_slope=theil_sen(jobs, descriptors),
        )

    @property
    def is_too_much(self) -> bool:
        return self.uss_slope > SLOPE_MAX_MB or self.descriptors_slope > DESCRIPTORS_SLOPE_MAX


def growths(samples: Iterable[Sample], jobs: int) -> list[Growth]:
    """Of each process that has lived through enough of so many jobs."""
    return [Growth.of(life) for life in lives(samples, jobs)]


def lives(samples: Iterable[Sample], jobs: int) -> list[list[Sample]]:
    """The samples of each such process."""
    by_life = sorted(samples, key=lambda sample: (sample.process, sample.pid))
    found = [
        list(life) for _, life in itertools.groupby(by_life, lambda sample: (sample.process, sample.pid))
    ]
    return [life for life in found if life[-1].jobs - life[0].jobs >= LIFE_SHARE_MIN * jobs]
