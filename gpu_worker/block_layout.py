"""What a 4-bit weight file says of itself, as JSON in the metadata of the safetensors file. Without torch.

A quantized component is one file for each block of the model and one for the rest. A layer `L` that is in 4
bits has the tensors `L.qweight` (uint8), `L.scale`, `L.zero` and, if it has one, `L.bias` (bfloat16); see
`engines/quantized_linear.py`. All other tensors are plain bfloat16, under their names in diffusers' layout.
"""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_worker.engines.engine import ModelUnusable

METADATA_KEY: Final = "flux-server-4bit"
GROUP_SIZE: Final = 64
PACKING: Final = "two halves of a group, the first in the high bits"
REST: Final = "rest"
"""In place of a block's name: all that is in no block."""

_Features = Annotated[int, Field(gt=0, le=1 << 24)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class LayerLayout(_Part):
    """A linear layer in 4 bits."""

    out_features: _Features
    in_features: Annotated[int, Field(gt=0, le=1 << 24, multiple_of=GROUP_SIZE)]
    relative_error: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Norm of the difference to the bfloat16 weight, through the norm of that weight."""


class BlockOrigin(_Part):
    """What the file was made from. The same origin gives the same bytes on the same kind of device."""

    source_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the block's tensors before, with their names, dtypes and shapes."""
    optimized: bool
    """Whether hqq searched for the best zeros, or took the ends of each group's range."""
    hqq: Annotated[str, Field(max_length=64)]
    torch: Annotated[str, Field(max_length=64)]


class BlockLayout(_Part):
    format: Literal[1] = 1
    method: Literal["hqq"] = "hqq"
    bits: Literal[4] = 4
    group_size: Literal[64] = GROUP_SIZE
    axis: Literal[1] = 1
    packing: Literal["two halves of a group, the first in the high bits"] = PACKING
    component: Literal["transformer", "text_encoder_2"]
    block: Annotated[str, Field(min_length=1, max_length=256)]
    layers: dict[str, LayerLayout]
    """By their full names."""
    origin: BlockOrigin


def read_layout(metadata: dict[str, str] | None) -> BlockLayout | None:
    """The layout in a safetensors file's metadata; None for a file without one.

    Raises:
        ModelUnusable: there is one, but not of this format; the text does not name the file.
    """
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return BlockLayout.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise ModelUnusable(f"not a 4-bit file of this version: {why}") from error
