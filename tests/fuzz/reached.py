"""What the inputs in a folder reach: `python -m fuzz.reached MODULE TARGET FOLDER`.

It prints how many statements the target's modules have, and how many of them were reached.
"""

import sys
from importlib import import_module
from pathlib import Path

import coverage
from fuzz.targets import of_module


def main() -> None:
    home, name, folder = sys.argv[1:]
    watch = coverage.Coverage(
        data_file=None, include=["*/proto/*", "*/broker/*", "*/frontend/*", "*/gpu_worker/*"]
    )
    watch.start()
    target = of_module(home)[name]  # what a module does when it is imported is reached, too
    for file in sorted(Path(folder).iterdir()):
        target.check(file.read_bytes())
    watch.stop()
    statements = missed = 0
    for module in target.modules:
        _, lines, _, missing, _ = watch.analysis2(str(import_module(module).__file__))
        statements, missed = statements + len(lines), missed + len(missing)
    print(statements, statements - missed)


if __name__ == "__main__":
    main()
