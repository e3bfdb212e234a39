"""A linear layer whose weight stays in 4 bits and is dequantized whenever it is used.

The numbers are HQQ's (https://github.com/mobiusml/hqq), made once by `python -m gpu_worker quantize`:
64 neighbours along the input share a scale and a zero, and `weight = (code - zero) * scale`.
At run time nothing of hqq is needed.

Packing (`block_layout.PACKING`): `qweight[o, g, j]` holds two codes of output `o` and group `g`, that of the
group's element `j` in its high four bits and that of element `j + 32` in its low ones. So each row stands
alone, and a group unpacks into two runs of neighbours.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gpu_worker.block_layout import GROUP_SIZE

_HALF = GROUP_SIZE // 2


class QuantizedLinear(nn.Module):  # type: ignore[misc]  # torch is Any where it is not installed
    """In place of an `nn.Linear`: same input, output and bias; computes in the dtype of `scale`.

    Its `weight` is None. transformers' T5 looks at the weight's dtype before it calls the layer, and leaves
    its input as it is where there is none: right here, as all of the model has one dtype.
    """

    qweight: torch.Tensor
    """uint8, (out, in / 64, 32)."""
    scale: torch.Tensor
    """(out, in / 64, 1)."""
    zero: torch.Tensor
    """(out, in / 64, 1): the code, not rounded, that means 0."""
    bias: torch.Tensor | None
    """(out,)."""

    def __init__(
        self, qweight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        """Raises `ValueError`: the tensors do not belong together."""
        super().__init__()
        out_features, groups = scale.shape[:2]
        expected: dict[str, tuple[int, ...]] = {
            "qweight": (out_features, groups, _HALF),
            "zero": (out_features, groups, 1),
        }
        if bias is not None:
            expected["bias"] = (out_features,)
        given: dict[str, Any] = {"qweight": qweight, "zero": zero, "bias": bias}
        for name, shape in expected.items():
            if given[name].shape != shape:
                raise ValueError(f"{name} is of shape {tuple(given[name].shape)}, expected {shape}")
        self.out_features, self.in_features = out_features, groups * GROUP_SIZE
        self.register_parameter("weight", None)
        for name, tensor in {"scale": scale, **given}.items():
            self.register_buffer(name, tensor)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        return functional.linear(given, self.dequantized(), self.bias)

    def dequantized(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight, (out, in), in this dtype or that of `scale`."""
        codes = torch.cat((self.qweight >> 4, self.qweight & 15), dim=-1).to(self.scale.dtype)
        weight = codes.sub_(self.zero).mul_(self.scale).view(self.out_features, self.in_features)
        return weight if dtype is None else weight.to(dtype)

    def expanded(self) -> nn.Linear:
        """The same layer with a plain weight in the dtype of `scale`."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        plain.weight = nn.Parameter(self.dequantized(), requires_grad=False)
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias, requires_grad=False)
        return plain

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


def packed(codes: torch.Tensor) -> torch.Tensor:
    """`qweight` for these codes: 0 to 15, of any dtype, (out, in / 64, 64)."""
    high, low = codes.to(torch.uint8).split(_HALF, dim=-1)
    return (high << 4) | low
