"""The two large models of a FLUX pipeline before they have weights, and what of them may be in 4 bits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, assert_never

from accelerate import init_empty_weights
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from gpu_worker.block_layout import GROUP_SIZE
from gpu_worker.engines.engine import ModelUnusable

LargeComponent = Literal["transformer", "text_encoder_2"]
LARGE: Final[tuple[LargeComponent, ...]] = ("transformer", "text_encoder_2")

SECOND_NAMES: Final[dict[LargeComponent, dict[str, str]]] = {
    "transformer": {},
    # T5's input embedding has two names; files hold one or both of them.
    "text_encoder_2": {"encoder.embed_tokens.weight": "shared.weight"},
}
"""Of tensors that the model has once: by the name that is not kept, the one that is."""

_BLOCK_LISTS: Final[dict[LargeComponent, tuple[str, ...]]] = {
    "transformer": ("transformer_blocks", "single_transformer_blocks"),
    "text_encoder_2": ("encoder.block",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    name: str
    """`transformer_blocks.0` for example: all of its tensors begin with this and a point."""
    linears: dict[str, nn.Linear]
    """Those that may be in 4 bits, by their full names."""


def empty_model(component: LargeComponent, folder: Path) -> Any:
    """The model that the folder's `config.json` describes, in evaluation mode, its parameters on meta.

    Raises:
        ModelUnusable: it is the configuration of another model.
        OSError, ValueError, TypeError, LookupError: of the libraries, about the configuration.
    """
    match component:
        case "transformer":
            config = FluxTransformer2DModel.load_config(folder, local_files_only=True)
            _require(folder, config.get("_class_name"), "FluxTransformer2DModel")
            with init_empty_weights(include_buffers=False):
                model = FluxTransformer2DModel.from_config(config)
        case "text_encoder_2":
            described, _ = T5Config.get_config_dict(folder, local_files_only=True)
            _require(folder, described.get("model_type"), "t5")
            with init_empty_weights(include_buffers=False):
                model = T5EncoderModel(T5Config.from_pretrained(folder, local_files_only=True))
        case _:
            assert_never(component)
    return model.eval()


def blocks_of(component: LargeComponent, model: Any) -> list[Block]:
    """The model's repeated blocks, in the order in which they run."""
    return [
        Block(name=f"{listed}.{number}", linears=_linears(f"{listed}.{number}", block))
        for listed in _BLOCK_LISTS[component]
        for number, block in enumerate(model.get_submodule(listed))
    ]


def _linears(prefix: str, block: nn.Module) -> dict[str, nn.Linear]:
    return {
        f"{prefix}.{name}": module
        for name, module in block.named_modules()
        # No subclasses: they may use their weight in another way.
        if type(module) is nn.Linear and module.in_features % GROUP_SIZE == 0
    }


def _require(folder: Path, found: object, expected: str) -> None:
    if found != expected:
        raise ModelUnusable(f"{folder}: cannot be loaded: config.json is of {found!r}, not of {expected!r}")
