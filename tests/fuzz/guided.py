"""One target, fuzzed by atheris: `python -m fuzz.guided MODULE TARGET FOLDER [libFuzzer's options]`.

The folder holds the inputs that reached something new; a finding ends the process with another status than 0.
"""

import sys
from random import Random
from typing import Final

import atheris
from fuzz.targets import of_module

INSTRUMENTED: Final = ["proto", "broker", "frontend", "gpu_worker", "deploy", "tomllib"]


def main() -> None:
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = of_module(sys.argv[1])[sys.argv[2]]
    mutate = target.mutate

    def change(data: bytes, max_bytes: int, seed: int) -> bytes:
        """Every other time by the target's own idea of what is nearly right."""
        if mutate is not None and seed % 2:
            return mutate(data, Random(seed))[:max_bytes]
        return atheris.Mutate(data, max_bytes)

    options = {} if mutate is None else {"custom_mutator": change}
    atheris.Setup([sys.argv[0], *sys.argv[3:]], target.check, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
