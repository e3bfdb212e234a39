"""Draws docs/installed.svg from what `component_envs` tells: `python -m installed.chart SIZES.json SVG`.

Needs matplotlib (requirements/training.txt).
"""

import json
import sys
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

SHOWN: Final = 6
"""Packages with a bar part of their own; the rest is one."""
MB: Final = 1e6
CHARACTERS: Final = 110
"""That fit beside each other: what has less room for its name has none."""


def draw(sizes_bytes: dict[str, dict[str, int]], target: Path) -> None:
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "flux", "font.size": 8})
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    # Each has a scale of its own: on a common one all but the worker would be a line.
    for axes, (component, sizes) in zip(figure.subplots(len(sizes_bytes)), sizes_bytes.items(), strict=True):
        largest = sorted(sizes.items(), key=lambda entry: -entry[1])
        parts = [*largest[:SHOWN], ("others", sum(size for _, size in largest[SHOWN:]))]
        total, left = sum(sizes.values()), 0.0
        for n, (name, size) in enumerate(parts):
            axes.barh(
                0, size / MB, left=left, color=mpl.colormaps["tab20"](2 * (n % 10) + 1), edgecolor="white"
            )
            if size > total * max(0.04, len(name) / CHARACTERS):
                axes.text(left + size / MB / 2, 0, f"{name}\n{size / MB:.0f}", ha="center", va="center")
            left += size / MB
        axes.set(xlim=(0, total / MB), yticks=[], title=f"{component}: {total / MB:.0f} MB")
        axes.title.set_ha("left")
        axes.title.set_x(0)
        axes.spines[["top", "left", "right"]].set_visible(False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
