"""How large the parts of a FLUX model are, as they are stored and as plain weights. Pure."""

import dataclasses
from dataclasses import dataclass
from typing import Final

from gpu_worker.block_layout import GROUP_SIZE

PARAMETERS_PER_BYTE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentFootprint:
    """One component's weights."""

    parameters: int
    """As plain weights."""
    packed_bytes: int = 0
    """Of 4-bit weights, two in each byte; 0 for a component that is stored plain."""
    unpacked_elements: int | None = None
    """Numbers that are stored plain, scales and zero points included; None: all parameters are."""
    largest_packed: int = 0
    """Parameters of the largest 4-bit layer."""
    width: float = 1.0
    """Of its activations, as a part of FLUX.1-dev's."""

    @property
    def is_packed(self) -> bool:
        return self.packed_bytes > 0

    def weight_bytes(self, number_bytes: int, *, expanded: bool) -> int:
        """In memory, with plain numbers of this size; `expanded`: none in 4 bits."""
        if expanded or self.unpacked_elements is None:
            return self.parameters * number_bytes
        return self.packed_bytes + self.unpacked_elements * number_bytes

    def packed(self) -> "ComponentFootprint":
        """About what quantizing makes of it, as nearly all parameters are in layers that can be packed."""
        # Each has one scale and one zero point, which stay plain numbers.
        groups = self.parameters // GROUP_SIZE
        return dataclasses.replace(
            self, packed_bytes=self.parameters // PARAMETERS_PER_BYTE, unpacked_elements=2 * groups
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFootprint:
    """All components that have weights."""

    transformer: ComponentFootprint
    t5: ComponentFootprint
    clip: ComponentFootprint
    vae: ComponentFootprint

    @property
    def is_packed(self) -> bool:
        return self.transformer.is_packed or self.t5.is_packed

    def packed(self) -> "ModelFootprint":
        """About the same model after `quantize`."""
        return dataclasses.replace(self, transformer=self.transformer.packed(), t5=self.t5.packed())
