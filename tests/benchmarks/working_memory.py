"""Derives what FLUX.1-dev computes in, beside its weights: the constants of `gpu_worker/memory_plan.py`.

The models are built in their real size and run with fake tensors (`FakeTensorMode`): shapes, types and
lifetimes are real, but nothing is stored or computed, so it takes a minute on any machine. Counted are the
bytes of the tensors alive at once, in bf16. Not counted, so this is no measurement: workspaces of cuDNN and
cuBLAS, the context, fragmentation. Attention is taken as one fused kernel.

    PYTHONPATH=tests:. python -m benchmarks.working_memory
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_worker.engines.offline import prepare_environment

prepare_environment()

from gpu.random_flux import SIZES, Sizes, flux_transformer, flux_vae, t5_config  # noqa: E402
from transformers import T5EncoderModel  # noqa: E402

FULL = SIZES["full"]

SIDE_PX = 1024
TOKENS = 512
TILE_PX = 512
DTYPE = torch.bfloat16


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made under it and are still alive."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        weights = [*model.parameters(), *model.buffers()]
        # Views of the weights come out of operations, too.
        self._seen = weakref.WeakSet(weight.untyped_storage() for weight in weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size_bytes = storage.nbytes()
        self.now += size_bytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size_bytes)

    def _forget(self, size_bytes: int) -> None:
        self.now -= size_bytes


def fused_attention(query: torch.Tensor, *_arguments: Any, **_named: Any) -> torch.Tensor:
    """What a fused kernel allocates: the result, and one number a row in fp32."""
    sums = torch.empty(query.shape[:-1], dtype=torch.float32)
    del sums
    return torch.empty_like(query)


def peak_bytes(model: torch.nn.Module, compute: Callable[[], Any]) -> int:
    """Alive at once while it runs, its inputs and result included, the weights not."""
    with mock.patch.object(F, "scaled_dot_product_attention", fused_attention), torch.no_grad():
        live = LiveBytes(model)
        with live:
            compute()
    return live.peak


@contextmanager
def plain_type(dtype: torch.dtype) -> Iterator[None]:
    """New modules have it; a fake one cannot be converted."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def text_bytes() -> int:
    with plain_type(DTYPE):
        t5 = T5EncoderModel(t5_config(FULL)).eval()
    return peak_bytes(t5, lambda: t5(torch.zeros(1, TOKENS, dtype=torch.long))[0])


def step_bytes(sizes: Sizes = FULL) -> int:
    with plain_type(DTYPE):
        transformer = flux_transformer(sizes).eval()
    tokens = (SIDE_PX // 16) ** 2

    def step() -> Any:
        return transformer(
            hidden_states=torch.zeros(1, tokens, 64, dtype=DTYPE),
            encoder_hidden_states=torch.zeros(1, TOKENS, 4096, dtype=DTYPE),
            pooled_projections=torch.zeros(1, 768, dtype=DTYPE),
            timestep=torch.zeros(1, dtype=DTYPE),
            guidance=torch.zeros(1),
            txt_ids=torch.zeros(TOKENS, 3, dtype=DTYPE),
            img_ids=torch.zeros(tokens, 3, dtype=DTYPE),
            return_dict=False,
        )

    return peak_bytes(transformer, step)


def decode_bytes(*, tiled: bool) -> int:
    with plain_type(DTYPE):
        vae = flux_vae(FULL).eval()
    if tiled:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // 8
    return peak_bytes(vae, lambda: vae.decode(torch.zeros(1, 16, SIDE_PX // 8, SIDE_PX // 8, dtype=DTYPE)))


def main() -> None:
    with FakeTensorMode():
        for name, derive in (
            ("text", text_bytes),
            ("step", step_bytes),
            ("decode", lambda: decode_bytes(tiled=False)),
            ("decode, tiled", lambda: decode_bytes(tiled=True)),
        ):
            print(f"{name:14} {derive() / 1e6:8.0f} MB", flush=True)


if __name__ == "__main__":
    main()
