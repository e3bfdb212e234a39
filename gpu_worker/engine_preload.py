"""What the forkserver does before it serves: it ties its life to the worker's and imports the libraries.

multiprocessing imports this module in the forkserver, and nobody else does. Nothing here may use a GPU: its
context does not survive a fork.
"""

import gc
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from gpu_worker.engines.offline import prepare_environment
from gpu_worker.parent_death import live_no_longer_than
from gpu_worker.preload_request import PRELOAD_REQUEST, PreloadRequest

_DEVICE_COUNT: Final = "_cuda_getDeviceCount"
"""torch's question to the driver; builds without CUDA have none."""
_COUNT_WITH_NVML: Final = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""https://docs.pytorch.org/docs/stable/cuda_environment_variables.html"""


def _preload(request: PreloadRequest) -> None:
    live_no_longer_than(request.worker_pid)
    prepare_environment(request.cuda_visible_devices)
    _import_numpy()
    with ExitStack() as guards:
        for module in request.modules:
            _import(module)
            if module == "torch":
                guards.enter_context(_gpus_out_of_reach())
    # What was imported stays: the collector need not look at it again, nor copy its pages by doing so.
    gc.collect()
    gc.freeze()


def _import_numpy() -> None:
    """Without the threads that its BLAS, which no engine uses, would start here, before the fork."""
    variable = "OPENBLAS_NUM_THREADS"
    wanted = os.environ.get(variable)
    os.environ[variable] = "1"
    _import("numpy")
    # torch has a BLAS of its own, which may be the same.
    del os.environ[variable]
    if wanted is not None:
        os.environ[variable] = wanted


@contextmanager
def _gpus_out_of_reach() -> Iterator[None]:
    """diffusers asks torch for GPUs when it is imported: once the driver has been asked no fork can use one.

    So torch counts them with NVML, which does no harm, and 0 where that cannot be had; the engine asks anew.
    """
    library = getattr(sys.modules.get("torch"), "_C", None)
    count = getattr(library, _DEVICE_COUNT, None)
    if count is None:
        yield  # Of a build without CUDA there is nothing to keep away.
        return
    os.environ[_COUNT_WITH_NVML] = "1"
    setattr(library, _DEVICE_COUNT, lambda: 0)
    try:
        yield
    finally:
        setattr(library, _DEVICE_COUNT, count)
        del os.environ[_COUNT_WITH_NVML]


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception:  # noqa: BLE001 - the engine process imports it again, and says what is wrong
        return


_request = os.environ.pop(PRELOAD_REQUEST, None)
if _request is None:
    raise SystemExit(f"{__name__}: {PRELOAD_REQUEST} is missing; only a worker's forkserver imports this")
_preload(PreloadRequest.from_json(_request))
