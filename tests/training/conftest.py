"""`training` is no part of the wheel: it is imported from the source tree, and nothing else is."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_worker.engines.offline import prepare_environment

prepare_environment()

_SOURCE = Path(__file__).resolve().parents[2] / "training"


def _import_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "training", _SOURCE / "__init__.py", submodule_search_locations=[str(_SOURCE)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["training"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


_import_package()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
