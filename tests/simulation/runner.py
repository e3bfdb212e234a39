"""Many seeds, in as many processes as there are processors."""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from simulation.drill import Drill, drill
from simulation.stats import Stats

BATCH: Final = 4
"""Seeds that a process runs before it tells of them."""


@dataclass(slots=True)
class Tally:
    stats: Stats = field(default_factory=Stats)
    broken: list[Drill] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.stats.add(other.stats)
        self.broken += other.broken


def run_batch(seeds: list[int], brokers: int | None, self_checks: bool) -> Tally:
    """In a process of its own. The stories are left out: a seed tells its own again."""
    tally = Tally()
    for seed in seeds:
        done = drill(seed, brokers, self_checks=self_checks)
        tally.stats.add(done.stats)
        if done.broken is not None:
            tally.broken.append(done)
    return tally


def batches(first: int, seeds: int | None) -> Iterator[list[int]]:
    """Without end if no number of seeds is given."""
    for start in count(first, BATCH):
        end = start + BATCH if seeds is None else min(start + BATCH, first + seeds)
        if start >= end:
            return
        yield list(range(start, end))


def run_many(
    first: int,
    seeds: int | None,
    seconds: float | None,
    processes: int,
    *,
    brokers: int | None,
    keep_going: bool,
    self_checks: bool,
) -> Tally:
    """Until the seeds or the seconds are used up, or (unless `keep_going`) one of them has failed."""
    end = None if seconds is None else time.monotonic() + seconds
    tally, queue = Tally(), batches(first, seeds)
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: set[Future[Tally]] = {
            pool.submit(run_batch, batch, brokers, self_checks)
            for _, batch in zip(range(processes), queue, strict=False)
        }
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                batch = future.result()
                tally.add(batch)
                for broken in batch.broken:  # The end may be hours away.
                    told = f"seed {broken.seed}: {broken.broken}: {broken.detail}"
                    print(told, file=sys.stderr, flush=True)
            is_over = (end is not None and time.monotonic() >= end) or (tally.broken and not keep_going)
            if not is_over:
                running |= {
                    pool.submit(run_batch, batch, brokers, self_checks)
                    for _, batch in zip(done, queue, strict=False)
                }
    return tally
