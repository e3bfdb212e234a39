"""Pictures of the curves: one for each stage, the losses above and what was measured below."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Final

from training.course import curve_file
from training.recipe import STAGES, StageName

_LOSSES: Final = {"loss", "mse", "tone", "clip", "t5", "flow", "place"}

Curve = list[tuple[int, float]]
"""Steps and values."""


def read_curves(file: Path) -> dict[str, Curve]:
    """By name. Raises `OSError`."""
    curves: dict[str, Curve] = defaultdict(list)
    with file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            curves[row["name"]].append((int(row["step"]), float(row["value"])))
    return dict(curves)


def draw_curves(folder: Path) -> list[Path]:
    """`NAME.png` beside each `NAME.csv` in this folder."""
    return [_draw(folder, name) for name in STAGES if curve_file(folder, name).is_file()]


def _draw(folder: Path, name: StageName) -> Path:
    import matplotlib as mpl  # noqa: PLC0415 - training itself needs none

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    curves = read_curves(curve_file(folder, name))
    measured = {it: curve for it, curve in curves.items() if all(0 <= value <= 1 for _, value in curve[-1:])}
    losses = {it: curve for it, curve in curves.items() if it in _LOSSES}
    parts = {it: curve for it, curve in measured.items() if it not in losses and it != "kl"}
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 6), constrained_layout=True)
    for axes, shown, label in ((above, losses, "loss"), (below, parts, "part that is right")):
        for it, curve in shown.items():
            axes.plot(*zip(*curve, strict=True), label=it, linewidth=1)
        axes.set_ylabel(label)
        if shown:
            axes.legend(loc="best", fontsize="small")
    above.set_yscale("log")
    above.set_title(name)
    below.set_xlabel("step")
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file
