"""A stage's state on disk: weights, their average, AdamW's moments, the step. Written whole or not at all.

There is no generator's state in it: all that is random follows from the seed and the number of the step.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file

Tensors = dict[str, Any]

_STEP: Final = "step"
_SEED: Final = "seed"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    step: int
    """How many are done."""
    seed: int
    tensors: Tensors


def write(file: Path, checkpoint: Checkpoint) -> None:
    """Raises `OSError`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(plain, unfinished, metadata={_STEP: str(checkpoint.step), _SEED: str(checkpoint.seed)})
    unfinished.replace(file)


def read(file: Path) -> Checkpoint | None:
    """None if there is none. Raises `OSError`, and `SafetensorError` for another kind of file."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata() or {}
    return Checkpoint(int(metadata.get(_STEP, 0)), int(metadata.get(_SEED, 0)), load_file(file))


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Those under this name, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
