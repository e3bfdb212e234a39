"""Where a pipeline's weights go, and in which form."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    device: torch.device
    """For the transformer, CLIP and the VAE."""
    t5_device: torch.device
    dtype: torch.dtype
    """Of the weights, and of 4-bit ones once they are dequantized."""
    expand: bool
    """4-bit weights become plain ones while they load; without a meaning for plain files."""
