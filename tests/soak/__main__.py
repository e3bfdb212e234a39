"""Memory and descriptors of every process over very many jobs: `tox -e soak`, or `python -m soak`.

A tenth of the jobs is cancelled, and all workers but the first come and go. A process that lived through a
fifth of the jobs must not grow by more than `growth.SLOPE_MAX_MB` of its own memory in 10,000 jobs, nor in
descriptors. Exit status 1 if one does; the samples are kept, for `python -m soak.chart`.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TextIO

from processes.stack import Stack
from soak.callers import Callers
from soak.growth import Growth, growths
from soak.sizes import Sample, samples

SAMPLES_MAX: Final = 500
"""Of each process, in the whole run; fewer where that were more than one for every fifth job."""
LOOK_S: Final = 0.2
LOADED_WITHIN_S: Final = 600.0
ENGINES: Final = {
    "fake": {"engine": "fake", "fake_step_s": 0.005},
    "embedded": {"engine": "embedded"},
}


class Soak:
    def __init__(self, stack: Stack, callers: Callers, jobs: int, restarts: int, log: TextIO) -> None:
        self.samples: list[Sample] = []
        self._stack = stack
        self._callers = callers
        self._jobs = jobs
        self._turns = 2 * restarts
        self._log = log
        self._began_at = time.monotonic()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            calls = group.create_task(self._callers.run())
            group.create_task(self._watch(calls))
            group.create_task(self._restart_workers(calls))

    async def _watch(self, calls: asyncio.Task[None]) -> None:
        looks = min(SAMPLES_MAX, self._jobs // 5) or 1
        for look in itertools.count():
            await self._until(look * self._jobs // looks, calls)
            if calls.done():
                return
            for sample in samples(
                self._stack.components, time.monotonic() - self._began_at, self._callers.jobs
            ):
                self.samples.append(sample)
                self._log.write(json.dumps(dataclasses.asdict(sample)) + "\n")
            self._log.flush()
            if look % 25 == 0:
                print(f"{self._callers.jobs} jobs, {time.monotonic() - self._began_at:.0f} s", flush=True)

    async def _restart_workers(self, calls: asyncio.Task[None]) -> None:
        """One after the other is drained or killed, and comes back when as many jobs again have ended."""
        chance = random.Random(1)
        passing = list(self._stack.workers)[1:]
        for turn in range(self._turns) if passing else ():
            await self._until((turn + 1) * self._jobs // (self._turns + 1), calls)
            if calls.done():
                return
            worker = self._stack.workers[passing[turn // 2 % len(passing)]]
            if turn % 2:
                worker.start()
            elif chance.random() < 0.5:
                worker.kill()
            else:
                worker.send(signal.SIGTERM)
                await asyncio.to_thread(worker.ends)

    async def _until(self, jobs: int, calls: asyncio.Task[None]) -> None:
        """Until so many have ended, or all."""
        while self._callers.jobs < jobs and not calls.done():
            await asyncio.wait([calls], timeout=LOOK_S)


def table(found: Sequence[Growth]) -> str:
    head = "| process | jobs | USS, MB | slope, MB per 10,000 jobs | of PSS | descriptors | slope |"
    return "\n".join([head, "|" + "---|" * 7, *(_row(each) for each in found)])


def _row(of: Growth) -> str:
    cells = [
        of.process,
        f"{of.jobs}",
        "{:.1f} to {:.1f}".format(*of.uss_mb),
        f"{of.uss_slope:+.3f}",
        f"{of.pss_slope:+.3f}",
        "{} to {}".format(*of.descriptors),
        f"{of.descriptors_slope:+.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--engine", choices=ENGINES, default="fake")
    parser.add_argument("--workers", type=int, default=3, help="of which all but the first come and go")
    parser.add_argument("--restarts", type=int, default=25, help="of these workers, in the whole run")
    parser.add_argument("--brokers", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=0, help="different ones; 0: each job has its own")
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--samples", type=Path, default=Path("soak.jsonl"), help="written, JSON lines")
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    keys = tuple(f"caller{number}" for number in range(given.callers))
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        Stack(Path(folder), keys=keys, brokers=given.brokers) as stack,
        given.samples.open("w") as log,
    ):
        for broker in stack.brokers:
            broker.settings["queue_limit"] = given.callers
        stack.start(workers=given.workers, limit_s=LOADED_WITHIN_S, **ENGINES[given.engine])
        callers = Callers(stack.address, keys, given.jobs, given.prompts, seed=1)
        soak = Soak(stack, callers, given.jobs, given.restarts, log)
        asyncio.run(soak.run())
        for name, worker in stack.workers.items():
            if worker.is_running:  # one that has just been started does not hear yet that it is to end
                stack.until_state(name, "ready", LOADED_WITHIN_S)
    found = growths(soak.samples, given.jobs)
    ended = ", ".join(f"{kind}: {count}" for kind, count in callers.ended.most_common())
    print(f"{ended}; refused and repeated: {callers.refusals}\n\n{table(found)}")
    too_much = [each for each in found if each.is_too_much]
    for each in too_much:
        print(f"{each.process} (pid {each.pid}) grows", file=sys.stderr)
    return 1 if too_much or not found else 0


if __name__ == "__main__":
    sys.exit(main())
