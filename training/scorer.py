"""Reads a picture back: its ground, and what is on it where. With numpy alone, and nothing of the model.

Its accuracy on drawn truth is measured by `training/evaluation.py`, and held by tests.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from training.renderer import shape_distance
from training.scenes import COLOURS, PLACES, RADII, SHAPES, Scene, Thing

Picture = NDArray[np.float32]
"""Shape (height, width, 3), sRGB 0-1."""
Mask = NDArray[np.bool_]

_PALETTE: Final = np.array(list(COLOURS.values()), np.float32)
_AREA_MIN: Final = 0.004
"""Of the picture: less is no thing."""
_OVERLAP_MIN: Final = 0.6
"""Of a thing with the best shape's outline, as intersection through union: less is no shape."""
_GRID: Final = 40
_REACH: Final = 2.2
"""Half a template's side, in the radius of a circle of the thing's area."""
_TURNS: Final = (-0.12, -0.06, 0.0, 0.06, 0.12)
"""Radians."""


@dataclass(frozen=True, slots=True)
class Reading:
    ground: int
    things: tuple[Thing | None, ...]
    """None where there is none; a shape of -1 is none of the known ones."""


def read_single(picture: Picture) -> Reading:
    """As a picture of one thing."""
    ground, nearest = _ground(picture)
    return Reading(ground, (_thing(picture, ground, nearest, np.ones(nearest.shape, bool)),))


def read_pair(picture: Picture) -> Reading:
    """As a picture of two things, above each other or side by side: whichever way leaves less in between."""
    ground, nearest = _ground(picture)
    mask = nearest != ground
    height, width = mask.shape
    across = mask[round(0.47 * height) : round(0.53 * height)].mean()
    along = mask[:, round(0.47 * width) : round(0.53 * width)].mean()
    first = np.zeros(mask.shape, bool)
    if across <= along:
        first[: height // 2] = True
    else:
        first[:, : width // 2] = True
    return Reading(ground, tuple(_thing(picture, ground, nearest, half) for half in (first, ~first)))


def read(picture: Picture, scene: Scene) -> Reading:
    """In the way that this scene should be read."""
    return read_pair(picture) if scene.relation else read_single(picture)


def agreement(scene: Scene, reading: Reading) -> dict[str, float]:
    """1 or 0 for each property, which must hold for all things of the scene; `all` is without the size."""
    pairs = list(zip(scene.things, reading.things, strict=True))
    found = {
        "ground": scene.ground == reading.ground,
        "colour": all(it is not None and it.colour == wanted.colour for wanted, it in pairs),
        "position": all(it is not None and it.cell == wanted.cell for wanted, it in pairs),
        "shape": all(it is not None and it.shape == wanted.shape for wanted, it in pairs),
    }
    sizes = all(it is not None and it.size == wanted.size for wanted, it in pairs)
    return {
        name: float(value) for name, value in (found | {"all": all(found.values()), "size": sizes}).items()
    }


def _ground(picture: Picture) -> tuple[int, NDArray[np.intp]]:
    """The commonest colour, and each pixel's nearest one."""
    nearest = np.stack([((picture - colour) ** 2).sum(-1) for colour in _PALETTE]).argmin(0)
    return int(np.bincount(nearest.ravel(), minlength=len(_PALETTE)).argmax()), nearest


def _thing(picture: Picture, ground: int, nearest: NDArray[np.intp], where: Mask) -> Thing | None:
    counts = np.bincount(nearest[where & (nearest != ground)], minlength=len(_PALETTE))
    colour = int(counts.argmax())
    if counts[colour] < _AREA_MIN * nearest.size:
        return None
    # On the edge colours mix: what is nearer to the thing's than to the ground's is the thing.
    mask = where & (_square(picture, colour) < _square(picture, ground))
    mask &= (nearest == colour) | _beside(nearest == colour)
    rows, columns = np.nonzero(mask)
    row, column = rows.mean() + 0.5, columns.mean() + 0.5
    height, width = mask.shape
    shape = _shape(mask, row, column)
    return Thing(shape, colour, 3 * _cell(row / height) + _cell(column / width), _size(shape, mask))


def _square(picture: Picture, colour: int) -> NDArray[np.float32]:
    distance: NDArray[np.float32] = ((picture - _PALETTE[colour]) ** 2).sum(-1)
    return distance


def _beside(mask: Mask) -> Mask:
    grown = mask.copy()
    for axis in (0, 1):
        grown |= np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
    return grown


def _cell(place: float) -> int:
    return int(np.abs(np.array(PLACES) - place).argmin())


def _shape(mask: Mask, row: float, column: float) -> int:
    """The template with the largest overlap, after moving and scaling both to the same centre and area."""
    radius = math.sqrt(mask.sum() / math.pi)
    steps = (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH
    at_rows = np.floor(row + steps * radius).astype(int)
    at_columns = np.floor(column + steps * radius).astype(int)
    inside_rows = (at_rows >= 0) & (at_rows < mask.shape[0])
    inside_columns = (at_columns >= 0) & (at_columns < mask.shape[1])
    seen = mask[at_rows.clip(0, mask.shape[0] - 1)][:, at_columns.clip(0, mask.shape[1] - 1)]
    seen = seen & inside_rows[:, None] & inside_columns[None, :]
    templates = _templates()
    overlaps = (templates & seen).sum((2, 3)) / (templates | seen).sum((2, 3))
    best = overlaps.max(1)
    return int(best.argmax()) if best.max() >= _OVERLAP_MIN else -1


def _size(shape: int, mask: Mask) -> int:
    radius = math.sqrt(mask.sum() / _areas()[shape]) / min(mask.shape)
    return int(np.abs(np.array(RADII) - radius).argmin())


@cache
def _areas() -> tuple[float, ...]:
    """Of each shape with radius 1; the last is for none of them."""
    line = torch.linspace(-2, 2, 401)
    found = [
        float((shape_distance([it], line[None, None], line[None, :, None]) < 0).float().mean())
        for it in range(len(SHAPES))
    ]
    areas = [16 * it for it in found]
    return (*areas, sum(areas) / len(areas))


@cache
def _templates() -> NDArray[np.bool_]:
    """Shape (shapes, turns, grid, grid): each with its own centroid in the middle and the area pi."""
    line = (np.arange(_GRID) + 0.5) / _GRID * 2 * _REACH - _REACH
    return np.stack(
        [np.stack([_template(shape, turn, line) for turn in _TURNS]) for shape in range(len(SHAPES))]
    )


def _template(shape: int, turn: float, line: NDArray[np.float64]) -> Mask:
    def inside(x: Any, y: Any) -> Mask:
        cosine, sine = math.cos(turn), math.sin(turn)
        tensors = (
            torch.from_numpy(it)[None].float() for it in (x * cosine + y * sine, y * cosine - x * sine)
        )
        mask: Mask = (shape_distance([shape], *tensors)[0] < 0).numpy()
        return mask

    fine = np.linspace(-2, 2, 401)
    x, y = np.broadcast_arrays(fine[None, :], fine[:, None])
    mask = inside(x, y)
    scale = math.sqrt(_areas()[shape] / math.pi)
    wide, high = np.broadcast_arrays(
        line[None, :] * scale + x[mask].mean(), line[:, None] * scale + y[mask].mean()
    )
    return inside(wide, high)
