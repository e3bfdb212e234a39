"""`python -m training`: the only command. See docs/embedded-model.md."""

import sys
from collections.abc import Sequence
from typing import Final

from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED
from training.settings import TrainingSettings

_PROGRAM: Final = "training"
_INSTALL: Final = "pip install -r requirements/torch.txt -r requirements/training.txt"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 78 for what somebody must change, 130 for what goes on when it is run again."""
    settings = load_settings(TrainingSettings, argv, _PROGRAM)
    # These import torch, which takes seconds that no bad setting should cost.
    from gpu_worker.engines.engine import ModelUnusable  # noqa: PLC0415
    from gpu_worker.engines.offline import prepare_environment  # noqa: PLC0415

    prepare_environment()
    try:
        from training.checkpoint import CheckpointUnusable  # noqa: PLC0415
        from training.program import MissingStage, Program  # noqa: PLC0415
    except ModuleNotFoundError as error:
        return _say(f"the module {error.name} is missing: {_INSTALL}")
    try:
        finished = Program(settings).run()
    except (MissingStage, CheckpointUnusable, ModelUnusable, OSError) as error:
        return _say(str(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0 if finished else EXIT_INTERRUPTED


def _say(text: str) -> int:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)
    return EXIT_BAD_CONFIGURATION


if __name__ == "__main__":
    raise SystemExit(main())
