"""Draws what soaks have sampled, a row for each: `python -m soak.chart SVG SAMPLES.jsonl …`.

Needs matplotlib (requirements/training.txt).
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from soak.growth import Growth, lives
from soak.sizes import Sample

POINTS: Final = 60
"""Of each line: more cannot be told apart, and the file is to be small."""


def draw(target: Path, runs: Sequence[Sequence[Sample]]) -> None:
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "flux", "font.size": 8, "lines.linewidth": 1}
    )
    figure = Figure(figsize=(9, 2.9 * len(runs)), layout="constrained")
    for row, samples in zip(figure.subplots(len(runs), 2, squeeze=False), runs, strict=True):
        _draw_run(row, samples)
    figure.savefig(target, metadata={"Date": None})


def _draw_run(row: Any, samples: Sequence[Sample]) -> None:
    memory, descriptors = row
    jobs = max(sample.jobs for sample in samples)
    for life in lives(samples, jobs):
        shown = life[:: max(1, len(life) // POINTS)]
        at = [sample.jobs / 1000 for sample in shown]
        slope = Growth.of(life).uss_slope
        memory.plot(at, [sample.uss_mb for sample in shown], label=f"{life[0].process}: {slope:+.2f}")
        descriptors.plot(at, [sample.descriptors for sample in shown])
    memory.set(title="own memory (USS), MB; slope in MB per 10,000 jobs", ylim=(0, None))
    memory.legend(fontsize=6, ncols=2, frameon=False)
    descriptors.set(title="descriptors", ylim=(0, None))
    for axes in row:
        axes.set_xlabel("thousand jobs")
        axes.spines[["top", "right"]].set_visible(False)


def read(path: Path) -> list[Sample]:
    return [Sample(**json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [read(Path(name)) for name in sys.argv[2:]])
