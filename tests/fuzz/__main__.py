"""`python -m fuzz`: inputs for whatever takes them, and frames for every socket of a running service."""

import argparse
import sys
from pathlib import Path

from fuzz.campaign import fuzz_all
from fuzz.live.attack import attack
from fuzz.targets import all_targets


def main() -> int:
    targets = all_targets()
    arguments = _arguments(list(targets))
    arguments.findings.mkdir(parents=True, exist_ok=True)
    found = 0
    if arguments.inputs:
        chosen = [target for name, target in targets.items() if name in (arguments.only or targets)]
        for verdict in fuzz_all(
            chosen, arguments.inputs, arguments.seed, arguments.findings, keep=arguments.keep
        ):
            print(verdict, flush=True)
            found += bool(verdict.finding)
    if arguments.frames:
        for line in attack(arguments.frames, arguments.seed):
            print(line, flush=True)
            found += line.startswith("FOUND")
    print(f"{found} findings" if found else "nothing found")
    return 1 if found else 0


def _arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=0, help="for all targets together")
    parser.add_argument("--frames", type=int, default=0, help="to each socket of a running service")
    parser.add_argument("--only", nargs="+", choices=names, help="these targets")
    parser.add_argument("--seed", type=int, default=1, help="of all chance; the same gives the same inputs")
    parser.add_argument("--keep", action="store_true", help="put what reached something new into the corpus")
    parser.add_argument("--findings", type=Path, default=Path("findings"), help="folder for what was found")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
