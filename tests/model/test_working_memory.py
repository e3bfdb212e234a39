"""The planner's constants are those of the models in their real size."""

from collections.abc import Callable
from unittest import mock

import pytest
from benchmarks import working_memory
from diffusers import FluxTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode

from gpu_worker import memory_plan

MB = 1_000_000


def shortened() -> FluxTransformer2DModel:
    """One block of each kind: the peak lies within one, and weights do not count."""
    return FluxTransformer2DModel(guidance_embeds=True, num_layers=1, num_single_layers=1).eval()


# The VAE in tiles has the same code, and takes half a minute: see the program.
@pytest.mark.parametrize(
    ("derive", "constant"),
    [
        (working_memory.text_bytes, memory_plan.TEXT_BYTES),
        (working_memory.step_bytes, memory_plan.STEP_BYTES),
        (lambda: working_memory.decode_bytes(tiled=False), memory_plan.DECODE_BYTES),
    ],
)
def test_constants_are_derived(derive: Callable[[], int], constant: int) -> None:
    with FakeTensorMode(), mock.patch.object(working_memory, "flux_transformer", shortened):
        assert derive() == pytest.approx(constant, abs=MB)
