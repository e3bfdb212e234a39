"""One thread: more of them would give other weights."""

from collections.abc import Iterator

import pytest
from samples.training_source import import_training

from gpu_worker.engines.offline import prepare_environment

prepare_environment()
import_training()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
