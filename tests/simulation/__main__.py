"""Runs the simulation: for some time, over some seeds, or one seed with its whole story.

    python -m simulation --seconds 120
    python -m simulation --seeds 100 --first 1
    python -m simulation --seed 17

With `tests` on the path. Exit status 1 if an invariant did not hold; then with the end of the story and the
command that tells it again.
"""

import argparse
import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Final

from simulation.drill import Drill, drill
from simulation.invariants import INVARIANTS
from simulation.runner import run_many

import broker.core

TAIL: Final = 60
"""Lines of a failed seed's story."""


def tell_failure(failed: Drill, *, self_checks: bool) -> None:
    """Again, with its story."""
    told = drill(failed.seed, failed.brokers, is_told=True, self_checks=self_checks)
    print(f"\n=== seed {failed.seed}: {failed.broken}: {failed.detail}")
    print("\n".join(told.story[-TAIL:]))
    if told.broken != failed.broken:
        print(f"NOT THE SAME WHEN RUN AGAIN: {told.broken}: something is not deterministic")
    print(f"replay: PYTHONPATH=tests python -m simulation --seed {failed.seed} --brokers {failed.brokers}")


def replay(seed: int, brokers: int | None) -> int:
    done = drill(seed, brokers, is_told=True)
    print("\n".join(done.story))
    print(done.stats.told(INVARIANTS, 0.0))
    if done.broken is not None:
        print(f"seed {seed}: {done.broken}: {done.detail}")
    return 0 if done.broken is None else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation")
    parser.add_argument("--seed", type=int, help="tell the whole story of this seed")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--brokers", type=int, help="so many in every world, whatever the seeds say")
    parser.add_argument("--seconds", type=float, help="as many seeds as this allows; 120 if nothing is said")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--keep-going", action="store_true", help="also when a seed has failed")
    parser.add_argument("--json", action="store_true", help="only the failed seeds, for programs")
    parser.add_argument(
        "--no-self-checks", action="store_true", help="without what the cores check themselves"
    )
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return replay(arguments.seed, arguments.brokers)
    seconds = arguments.seconds
    if seconds is None and arguments.seeds is None:
        seconds = 120.0
    began = time.monotonic()
    tally = run_many(
        arguments.first,
        arguments.seeds,
        seconds,
        arguments.processes,
        brokers=arguments.brokers,
        keep_going=arguments.keep_going,
        self_checks=not arguments.no_self_checks,
    )
    tally.broken.sort(key=lambda failed: failed.seed)
    if arguments.json:
        failures = [
            {"seed": each.seed, "invariant": each.broken, "detail": each.detail} for each in tally.broken
        ]
        cores = str(Path(broker.core.__file__).parent.parent)
        print(json.dumps({"cores": cores, "seeds": tally.stats.seeds, "failures": failures}))
    else:
        print(tally.stats.told(INVARIANTS, time.monotonic() - began))
        for failed in tally.broken if arguments.keep_going else tally.broken[:1]:
            tell_failure(failed, self_checks=not arguments.no_self_checks)
        if tally.broken:
            print("failed seeds:", *(each.seed for each in tally.broken))
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
