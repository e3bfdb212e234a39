"""How far the 4-bit weights are from the plain ones, and how much smaller."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from gpu_worker.block_layout import BlockLayout
from gpu_worker.engines.flux_architecture import LargeComponent

REPORT_NAME: Final = "quantization-report.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ComponentReport(_Part):
    component: str
    mean_error: float
    """Of the layers' relative errors, each ||W - Q|| / ||W|| against the weight in bfloat16."""
    worst_error: float
    worst_layer: str
    size_bytes: int
    """Of its files."""
    plain_size_bytes: int
    """Of all of its weights in bfloat16."""
    bits_per_weight: float
    """Of all weights, those that stay plain included."""
    errors: dict[str, float]
    """Of each 4-bit layer."""

    def line(self) -> str:
        sizes = f"{self.size_bytes / 1e9:.2f} GB instead of {self.plain_size_bytes / 1e9:.2f}"
        if not self.errors:
            return f"{self.component}: no layer is large enough for 4 bits; {sizes}"
        return (
            f"{self.component}: {len(self.errors)} layers, relative error {self.mean_error:.2%} on average,"
            f" {self.worst_error:.2%} at worst ({self.worst_layer}); {sizes},"
            f" {self.bits_per_weight:.2f} bits a weight"
        )


class Report(_Part):
    source: str
    revision: str
    tool: str
    components: list[ComponentReport]

    def lines(self) -> list[str]:
        return [component.line() for component in self.components]

    def write(self, folder: Path) -> None:
        """Raises `OSError`."""
        (folder / REPORT_NAME).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def report_component(
    component: LargeComponent, layouts: Sequence[BlockLayout], *, weights: int, size_bytes: int
) -> ComponentReport:
    """`weights`: how many numbers the component has."""
    errors = {name: layer.relative_error for layout in layouts for name, layer in layout.layers.items()}
    worst = max(errors, key=errors.__getitem__, default="")
    return ComponentReport(
        component=component,
        mean_error=round(statistics.fmean(errors.values()), 6) if errors else 0.0,
        worst_error=errors.get(worst, 0.0),
        worst_layer=worst,
        size_bytes=size_bytes,
        plain_size_bytes=2 * weights,
        bits_per_weight=round(8 * size_bytes / weights, 3),
        errors=errors,
    )
