"""What `python -m gpu_worker` does: a worker, or a command that prepares a model folder for it."""

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import Final

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED

_REQUIREMENTS: Final = {
    "prefetch": "requirements/gpu_worker.txt",
    "quantize": "requirements/quantize.txt",
}
"""Each command is the module of its name, with a `main(argv) -> int`, and needs what this file lists."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in _REQUIREMENTS:
        return _run_command(arguments[0], arguments[1:])
    from gpu_worker.process import main as run_worker  # noqa: PLC0415 - the commands need none of it

    return run_worker(arguments)


def _run_command(command: str, arguments: list[str]) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # The same good-bye as for Ctrl-C.
    try:
        module = importlib.import_module(f"gpu_worker.{command}")
    except ImportError as error:
        print(
            f"gpu_worker {command}: {error}: {sys.executable} -m pip install -r {_REQUIREMENTS[command]}",
            file=sys.stderr,
        )
        return EXIT_BAD_CONFIGURATION
    except KeyboardInterrupt:
        print(f"gpu_worker {command}: stopped before it began", file=sys.stderr)
        return EXIT_INTERRUPTED
    return int(module.main(arguments))
