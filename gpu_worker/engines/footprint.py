"""Reads a model's footprint from its folder: configurations and headers of the weights, no weights.

The tensors themselves are checked when they are loaded.
"""

import json
from math import prod
from pathlib import Path
from typing import Any, Final

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.flux_architecture import SECOND_NAMES
from gpu_worker.engines.weight_files import read_header
from gpu_worker.model_footprint import PARAMETERS_PER_BYTE, ComponentFootprint, ModelFootprint

_PACKED_SUFFIX: Final = ".qweight"
_GROUP_SUFFIXES: Final = (".scale", ".zero")
_WIDTH_MAX: Final = 1 << 20
# Of FLUX.1-dev.
_TRANSFORMER_WIDTH: Final = 3072
_T5_WIDTH: Final = 4096
_VAE_WIDTH: Final = 256


def read_footprint(folder: Path) -> ModelFootprint:
    """Of a folder that `check_flux_folder` has accepted.

    Raises:
        ModelUnusable: a file of weights cannot be read; the text names it.
    """
    transformer, t5, vae = (_config(folder / name) for name in ("transformer", "text_encoder_2", "vae"))
    transformer_width = _integer(transformer, "num_attention_heads") * _integer(
        transformer, "attention_head_dim"
    )
    channels = vae.get("block_out_channels")
    channel = channels[1] if isinstance(channels, list) and len(channels) > 1 else None
    return ModelFootprint(
        transformer=_component(folder / "transformer", transformer_width, _TRANSFORMER_WIDTH),
        t5=_component(folder / "text_encoder_2", _integer(t5, "d_model"), _T5_WIDTH),
        clip=_component(folder / "text_encoder", _T5_WIDTH, _T5_WIDTH),
        vae=_component(folder / "vae", channel if isinstance(channel, int) else 0, _VAE_WIDTH),
    )


def _component(path: Path, width: int, reference: int) -> ComponentFootprint:
    headers = {
        name: prod(tensor.shape)
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in read_header(file).tensors.items()
    }
    for second, first in SECOND_NAMES["text_encoder_2"].items():
        if first in headers:
            headers.pop(second, None)
    packed = {name: count for name, count in headers.items() if name.endswith(_PACKED_SUFFIX)}
    layers = {name.removesuffix(_PACKED_SUFFIX) for name in packed}
    groups = {layer + suffix for layer in layers for suffix in _GROUP_SUFFIXES}
    plain = sum(count for name, count in headers.items() if name not in packed and name not in groups)
    return ComponentFootprint(
        parameters=plain + PARAMETERS_PER_BYTE * sum(packed.values()),
        packed_bytes=sum(packed.values()),
        unpacked_elements=plain + sum(headers.get(name, 0) for name in groups),
        largest_packed=PARAMETERS_PER_BYTE * max(packed.values(), default=0),
        # A configuration without it is refused when the model is loaded.
        width=width / reference if width > 0 else 1.0,
    )


def _config(component: Path) -> dict[str, Any]:
    file = component / "config.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{file.absolute()}: cannot be read: {first_line(error)}") from error
    return content if isinstance(content, dict) else {}


def _integer(config: dict[str, Any], name: str) -> int:
    """0 for what is missing, or no number that a model could have."""
    value = config.get(name)
    return value if isinstance(value, int) and 0 < value < _WIDTH_MAX else 0
