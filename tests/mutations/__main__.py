"""Runs the simulation on each mutant of the cores until it notices.

    python -m mutations
    python -m mutations --seconds-each 120 "no fence" "no rebuild window"

With `tests` on the path. Exit status 1 if a mutant survives. What the cores check themselves is left out: the
simulation has to see from outside that something is wrong.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mutations.mutants import MUTANTS, Mutant, apply

TESTS: Final = Path(__file__).resolve().parent.parent
PACKAGES: Final = ("proto", "broker", "gpu_worker", "frontend")
SLACK_S: Final = 120.0
"""For the seeds that are running when the time is over."""


@dataclass(frozen=True, slots=True)
class Verdict:
    invariant: str | None
    """That did not hold; None if the mutant survived."""
    seed: int | None
    seeds: int
    seconds: float


def copy_packages(folder: Path) -> None:
    """Those that are installed, or lie in the source tree: whatever is imported here."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise SystemExit(f"there is no package {name}")
        shutil.copytree(Path(spec.origin).parent, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def hunt(wanted: Mutant, seconds: float, first: int, *, self_checks: bool) -> Verdict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_packages(folder)
        apply(wanted, folder)
        command = [sys.executable, "-m", "simulation", "--json", f"--seconds={seconds}", f"--first={first}"]
        began = time.monotonic()
        done = subprocess.run(
            command if self_checks else [*command, "--no-self-checks"],
            # The folder that a module is run in comes first on its path.
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join((name, str(TESTS)))},
            capture_output=True,
            text=True,
            timeout=seconds + SLACK_S,
            check=False,
        )
        took_s = time.monotonic() - began
        if done.returncode not in (0, 1):
            raise SystemExit(f"{wanted.name}: {done.stderr}")
        told = json.loads(done.stdout)
        if Path(told["cores"]).resolve() != folder.resolve():
            raise SystemExit(f"{wanted.name}: the simulation ran the cores of {told['cores']}")
    failures = told["failures"]
    if not failures:
        return Verdict(None, None, told["seeds"], took_s)
    return Verdict(failures[0]["invariant"], failures[0]["seed"], told["seeds"], took_s)


def main() -> int:
    names = [each.name for each in MUTANTS]
    parser = argparse.ArgumentParser(prog="python -m mutations")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {'; '.join(names)}")
    parser.add_argument("--seconds-each", type=float, default=120.0)
    parser.add_argument("--first", type=int, help="the first seed; a mutant may have one of its own")
    parser.add_argument("--self-checks", action="store_true", help="with what the cores check themselves")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(
            f"there is no mutant {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, names))}"
        )
    survivors = []
    width = max(len(name) for name in names)
    for each in MUTANTS:
        if arguments.names and each.name not in arguments.names:
            continue
        first = each.first if arguments.first is None else arguments.first
        verdict = hunt(each, arguments.seconds_each, first, self_checks=arguments.self_checks)
        caught = verdict.invariant or f"SURVIVES {verdict.seeds} seeds"
        at = "" if verdict.seed is None else f"seed {verdict.seed}"
        print(f"{each.name:{width}}  {verdict.seconds:6.1f} s  {at:10}  {caught}", flush=True)
        if verdict.invariant is None:
            survivors.append(each.name)
    if survivors:
        print(f"{len(survivors)} survive: {', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
