"""A stage's state on disk: weights, their average, the optimizers' states, the step. Written whole.

There is no generator's state in it: all that is random follows from the seed and the number of the step.
"""

import json
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

Tensors = dict[str, Any]

_PROGRESS: Final = "progress"
_NAMED: Final = 3


class CheckpointUnusable(Exception):
    """What is in the training folder is not what this code would go on with. The text says what."""


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
    # One entry: the library writes several in any order, and the same state should be the same bytes.
    progress = json.dumps({"step": checkpoint.step, "seed": checkpoint.seed})
    save_file(plain, unfinished, metadata={_PROGRESS: progress})
    unfinished.replace(file)


def read(file: Path) -> Checkpoint | None:
    """None if there is none. Raises `OSError`, `CheckpointUnusable`."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stream:
            progress = json.loads((stream.metadata() or {})[_PROGRESS])
        return Checkpoint(progress["step"], progress["seed"], load_file(file))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointUnusable(f"{file}: not what a stage writes: {error}") from error


def part(tensors: Tensors, prefix: str) -> Tensors:
    """Those under this name, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def state_of(module: Any) -> Tensors:
    """A module's tensors, each under one name: T5's input embedding has two."""
    names = _names_of(module)
    return {name: tensor for name, tensor in module.state_dict().items() if name in names}


def load_state(module: Any, tensors: Tensors) -> None:
    """Raises `CheckpointUnusable` where these are not all of this module's and no others."""
    check_alike(state_of(module), tensors)
    module.load_state_dict(tensors, strict=False)


def check_alike(expected: Tensors, found: Tensors) -> None:
    """Raise `CheckpointUnusable` unless names and shapes are the same."""
    if expected.keys() != found.keys():
        raise CheckpointUnusable(f"tensors of another model: {differences(expected.keys(), found)}")
    others = [name for name, tensor in expected.items() if tensor.shape != found[name].shape]
    if others:
        raise CheckpointUnusable(f"tensors of another shape: {_some(others)}")


def differences(expected: AbstractSet[str], found: Iterable[str]) -> str:
    """Some of the names that only one of them has, for people."""
    return _some(sorted(expected ^ set(found)))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _names_of(module: Any) -> set[str]:
    return {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
