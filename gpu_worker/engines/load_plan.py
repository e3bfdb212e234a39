"""Where the parts of a pipeline are to lie, and in which type."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """How a folder becomes a pipeline."""

    device: torch.device
    """Of the transformer, CLIP and the VAE."""
    t5_device: torch.device
    dtype: torch.dtype
    """Of all weights but T5's and those that stay in 4 bits."""
    t5_dtype: torch.dtype
    expand: bool
    """4-bit weights become plain ones of `dtype`, layer by layer while they load."""
