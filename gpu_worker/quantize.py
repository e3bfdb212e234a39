"""`python -m gpu_worker quantize`: from a plain FLUX folder, one whose large models are in 4 bits.

One core of a CPU needs one to two hours for FLUX.1-dev (derived from a layer of 9.4 million weights, 2.2 to
4.6 s), a GPU less; stopped, it goes on with the next block.
"""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.offline import prepare_environment
from gpu_worker.folder_setting import NamedFolder
from gpu_worker.model_store import check_plain_folder
from proto.configuration import Settings, load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START, EXIT_INTERRUPTED

_PROGRAM: Final = "gpu_worker quantize"
_INSTALL: Final = "DISABLE_CUDA=1 pip install -r requirements/quantize.txt"


class QuantizeSettings(Settings):
    """From a plain FLUX folder, one with 4-bit weights. Stopped, it goes on when it is run again."""

    model_config = SettingsConfigDict(env_prefix="FLUX_QUANTIZE_")

    source: NamedFolder = Field(
        Path("hub/FLUX.1-dev"), description="folder with the plain model, from prefetch"
    )
    target: NamedFolder | None = Field(
        None, description="folder that is made; unset: the source's name with -4bit, beside it"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = Field(
        "auto",
        description="where it is computed: auto (the first GPU, otherwise the CPU), cpu, cuda or cuda:N",
    )
    fast: bool = Field(
        False, description="some 20 times faster on a CPU, with 4 to 5 per cent more error in the weights"
    )
    threads: int = Field(
        0, ge=0, le=1024, description="threads of the CPU's arithmetic; 0: torch's own choice"
    )

    @property
    def target_folder(self) -> Path:
        source = self.source.absolute()
        return self.target if self.target is not None else source.with_name(f"{source.name}-4bit")


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 78 for what somebody must change, 69 for what may pass, 130 after Ctrl-C."""
    settings = load_settings(QuantizeSettings, argv, _PROGRAM)
    prepare_environment()
    try:
        return _run(settings)
    except ModuleNotFoundError as error:
        return _say(f"the module {error.name} is missing: {_INSTALL}", EXIT_BAD_CONFIGURATION)
    except ModelUnusable as error:
        return _say(str(error), EXIT_BAD_CONFIGURATION)
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            return _say(
                f"{settings.target_folder}: the disk is full: make room, and run it again",
                EXIT_BAD_CONFIGURATION,
            )
        return _say(first_line(error), EXIT_BAD_CONFIGURATION)
    except KeyboardInterrupt:
        return _say("stopped; run again it goes on with the next block", EXIT_INTERRUPTED)


def _run(settings: QuantizeSettings) -> int:
    check_plain_folder(settings.source)
    # These import torch, which takes seconds that no bad setting should cost.
    import torch  # noqa: PLC0415

    from gpu_worker.engines.device_errors import is_out_of_memory  # noqa: PLC0415
    from gpu_worker.engines.devices import choose_device  # noqa: PLC0415
    from gpu_worker.quantizer.block_file import Method  # noqa: PLC0415
    from gpu_worker.quantizer.folder import quantize_folder  # noqa: PLC0415
    from gpu_worker.quantizer.hqq_layer import hqq_version  # noqa: PLC0415
    from gpu_worker.quantizer.source import open_source  # noqa: PLC0415
    from gpu_worker.quantizer.target import is_finished, quantization  # noqa: PLC0415

    if hqq_version() is None:
        raise ModuleNotFoundError(name="hqq")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    method = Method(optimized=not settings.fast, device=choose_device(settings.device))
    source, target = open_source(settings.source), settings.target_folder
    if is_finished(target, source, quantization(optimized=method.optimized)):
        return _say(f"{target} is there already, made from {source.name} at revision {source.revision}", 0)
    try:
        report = quantize_folder(source, target, method)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return _say(
            f"out of memory on {method.device}: {first_line(error)}; try --device cpu", EXIT_CANNOT_START
        )
    for line in report.lines():
        print(line)
    print(f"made {target}; next: FLUX_WORKER_MODEL_DIR={target} make serve")
    return 0


def _say(text: str, status: int) -> int:
    print(f"{_PROGRAM}: {text}", file=sys.stderr)
    return status
