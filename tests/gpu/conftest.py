"""Full-size models with random weights, made once. Without a GPU all of this is skipped.

FLUX_GPU_TESTS=small tries the tests themselves with small models, on the CPU too.
"""

import os
from pathlib import Path

import pytest

from gpu_worker.engines.offline import prepare_environment

prepare_environment()

SCALE = os.environ.get("FLUX_GPU_TESTS", "full")


@pytest.fixture(scope="session")
def device() -> str:
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        return "cuda:0"
    if SCALE == "small":
        return "cpu"
    pytest.skip("torch sees no GPU here")


@pytest.fixture(scope="session")
def folders(device: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The plain one and the 4-bit one. FLUX_GPU_FOLDER keeps them for the next run and for the benchmark."""
    from gpu.bench import make_folders  # noqa: PLC0415

    kept = os.environ.get("FLUX_GPU_FOLDER")
    parent = Path(kept) if kept else tmp_path_factory.mktemp("models")
    return make_folders(parent, "small" if SCALE == "small" else "full", device)


@pytest.fixture
def cuda(device: str) -> str:
    if not device.startswith("cuda"):
        pytest.skip("needs a GPU's memory")
    return device


@pytest.fixture
def full_size() -> None:
    if SCALE == "small":
        pytest.skip("small models fit anywhere")
