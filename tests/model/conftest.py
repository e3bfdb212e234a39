"""The embedded model, on one thread: more of them would give other pixels, and no faster."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_worker.engines.offline import prepare_environment
from gpu_worker.manifest import MANIFEST_NAME
from gpu_worker.model_store import EMBEDDED_FOLDER

prepare_environment()


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    return EMBEDDED_FOLDER


@pytest.fixture(scope="session")
def quantized_folder(
    embedded_folder: Path, tmp_path_factory: pytest.TempPathFactory, _one_thread: None
) -> Path:
    """The embedded model in 4 bits: not to be changed."""
    from gpu_worker.quantize import main  # noqa: PLC0415

    target = tmp_path_factory.mktemp("hub") / "embedded-4bit"
    assert main(["--source", str(embedded_folder), "--target", str(target), "--device", "cpu"]) == 0
    return target


@pytest.fixture
def plain(embedded_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model under the same name, without a manifest; to be changed."""
    folder = Path(shutil.copytree(embedded_folder, tmp_path / embedded_folder.name))
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    return folder


@pytest.fixture
def source(plain: Path) -> Path:
    """What is quantized."""
    return plain


@pytest.fixture
def quantized(quantized_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model in 4 bits, to be changed."""
    return Path(shutil.copytree(quantized_folder, tmp_path / quantized_folder.name))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
