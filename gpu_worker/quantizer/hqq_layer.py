"""Quantizes one weight with hqq: the only module that imports it.

Of hqq's files none is ever read: its loader evaluates code that it finds in them.
"""

import sys
import warnings
from functools import cache
from importlib import metadata
from typing import Any, Final

import torch

from gpu_worker.block_layout import GROUP_SIZE
from gpu_worker.engines.quantized_linear import QuantizedLinear, packed

_SLICE_WEIGHTS: Final = {"cpu": 1 << 18, "cuda": 1 << 24}
"""How many are quantized at a time. hqq works in nine copies of them in float32: on a CPU these should fit
its caches (five times as fast as whole layers, with the same error), on a GPU, where it
was not measured, they should keep it busy."""


def hqq_version() -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version("hqq")
    except metadata.PackageNotFoundError:
        return None


def quantize_weight(weight: torch.Tensor, *, optimized: bool) -> QuantizedLinear:
    """The layer, without a bias, for this weight (out, in); on its device. Some rows at a time.

    `optimized`: hqq searches for the best zeros, in 20 rounds over the weight at most.
    """
    rows = max(1, _SLICE_WEIGHTS[weight.device.type] // weight.shape[1])
    slices = [_quantize_rows(part, optimized=optimized) for part in weight.split(rows)]
    qweight, scale, zero = (torch.cat(parts) for parts in zip(*slices, strict=True))
    return QuantizedLinear(qweight, scale, zero, None)


def _quantize_rows(
    weight: torch.Tensor, *, optimized: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """qweight, scale and zero."""
    codes, found = _quantizer().quantize(
        weight,
        nbits=4,
        group_size=GROUP_SIZE,
        axis=1,
        optimize=optimized,
        bitpack=False,
        device=str(weight.device),
    )
    rows, groups = weight.shape[0], weight.shape[1] // GROUP_SIZE
    scale, zero = (found[name].to(torch.bfloat16).view(rows, groups, 1) for name in ("scale", "zero"))
    return packed(codes.view(rows, groups, GROUP_SIZE)), scale, zero


def relative_error(layer: QuantizedLinear, weight: torch.Tensor) -> float:
    """||W - Q|| / ||W|| (Frobenius), with the weight W in bfloat16; 0 where W is 0 and Q too."""
    plain = weight.to(torch.bfloat16).float()
    norm = torch.linalg.vector_norm(plain)
    difference = torch.linalg.vector_norm(plain.sub_(layer.dequantized(torch.float32)))
    return float(difference / norm.clamp(min=torch.finfo(torch.float32).tiny))


@cache
def _quantizer() -> Any:
    # `prepare_environment` hides it from transformers.
    if sys.modules.get("hqq", sys) is None:
        del sys.modules["hqq"]
    with warnings.catch_warnings():
        # It loads torch's compiler, which warns of torch's own older parts.
        warnings.simplefilter("ignore", DeprecationWarning)
        from hqq.core.quantize import Quantizer  # noqa: PLC0415 - slow
    return Quantizer
