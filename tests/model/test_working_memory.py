"""The planner's constants are those of the models in their real size."""

import dataclasses
from collections.abc import Callable

import pytest
from benchmarks import working_memory
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu_worker import memory_plan

MB = 1_000_000


SHORTENED = dataclasses.replace(working_memory.FULL, double_blocks=1, single_blocks=1)
"""One block of each kind: the peak lies within one, and weights do not count."""


# The VAE in tiles has the same code, and takes half a minute: see the program.
@pytest.mark.parametrize(
    ("derive", "constant"),
    [
        (working_memory.text_bytes, memory_plan.TEXT_BYTES),
        (lambda: working_memory.step_bytes(SHORTENED), memory_plan.STEP_BYTES),
        (lambda: working_memory.decode_bytes(tiled=False), memory_plan.DECODE_BYTES),
    ],
)
def test_constants_are_derived(derive: Callable[[], int], constant: int) -> None:
    with FakeTensorMode():
        assert derive() == pytest.approx(constant, abs=MB)
