"""A service for each test, as what breaks may stay broken. It is over tcp, as between hosts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes.stack import Stack


@pytest.fixture
def stack(tmp_path: Path, time_scale: float) -> Iterator[Stack]:
    """Not started yet, so that a test can change what its processes are started with."""
    with Stack(tmp_path, over_tcp=True, time_scale=time_scale) as prepared:
        yield prepared


@pytest.fixture
def service(stack: Stack) -> Stack:
    return stack.start(workers=2)
