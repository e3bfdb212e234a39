"""What is to be done: one piece of work for each block of the model, and one for the rest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from torch import nn

from gpu_worker.block_layout import GROUP_SIZE, REST
from gpu_worker.engines.flux_architecture import SECOND_NAMES, LargeComponent, blocks_of
from gpu_worker.engines.weight_files import BLOCK_PREFIX, REST_FILE
from gpu_worker.quantizer.source import Source

_HEADER_BYTES: Final = 1 << 16
"""More than the header of one file needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One file of the new folder."""

    component: LargeComponent
    block: str
    file_name: str
    layers: tuple[str, ...]
    """The linear layers that become 4-bit ones."""
    plain: tuple[str, ...]
    """All other tensors, by the names under which the source stores them."""
    size_bytes: int
    """Of the file, at most."""

    @property
    def path(self) -> str:
        return f"{self.component}/{self.file_name}"

    @property
    def tensors(self) -> list[str]:
        """All that it is made from, in a fixed order."""
        return sorted([*self.plain, *(f"{layer}.weight" for layer in self.layers)])


def pieces_of(source: Source, component: LargeComponent) -> list[Piece]:
    shapes = {name: tensor.shape for file in source.files[component] for name, tensor in file.tensors.items()}
    for second, first in SECOND_NAMES[component].items():
        if first in shapes:
            shapes.pop(second, None)
    return list(_pieces(component, source.models[component], shapes))


def _pieces(
    component: LargeComponent, model: nn.Module, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Piece]:
    left = dict(shapes)
    for number, block in enumerate(blocks_of(component, model)):
        inside = {name: left.pop(name) for name in list(left) if name.startswith(f"{block.name}.")}
        file_name = f"{BLOCK_PREFIX}{number:03}.safetensors"
        yield _piece(component, block.name, file_name, tuple(block.linears), inside)
    yield _piece(component, REST, REST_FILE, (), left)


def _piece(
    component: LargeComponent,
    block: str,
    file_name: str,
    layers: tuple[str, ...],
    shapes: dict[str, tuple[int, ...]],
) -> Piece:
    weights = {f"{layer}.weight" for layer in layers}
    size_bytes = _HEADER_BYTES
    for name, shape in shapes.items():
        count = math.prod(shape)
        # Half a byte a weight with two bfloat16 numbers a group, or one bfloat16 number.
        size_bytes += count // 2 + 4 * (count // GROUP_SIZE) if name in weights else 2 * count
    return Piece(
        component=component,
        block=block,
        file_name=file_name,
        layers=layers,
        plain=tuple(sorted(shapes.keys() - weights)),
        size_bytes=size_bytes,
    )
