"""Draws scenes with signed distances, many at once, in torch.

Outlines after https://iquilezles.org/articles/distfunctions2d/ (MIT). `y` grows downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from training.scenes import CELLS, COLOURS, PLACES, RADII, Scene, Thing

Tensor = Any
"""`torch.Tensor`: types are checked without torch."""

_COLUMNS: Final = ("left", "centre", "right")
_ROWS: Final = ("top", "middle", "bottom")
_PLACE_JITTER: Final = 0.02
_SIZE_JITTER: Final = 0.05
_TURN_JITTER: Final = 0.12
"""Radians."""
_GROUND_SHADE: Final = 0.05
_THING_SHADE: Final = 0.07
"""Brightness from one end to the other: what makes a flat picture look drawn."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a picture that is drawn, in pixels; `tops` and `lefts` have one number for each scene."""

    height: int
    width: int
    tops: Tensor
    lefts: Tensor


def render(
    scenes: Sequence[Scene],
    height: int,
    width: int,
    chance: Any,
    window: Window | None = None,
    device: str = "cpu",
) -> Tensor:
    """Shape (scenes, 3, height, width), 0-1. `chance` (a CPU generator) moves, turns and scales a little.

    With a window, only what is in it is drawn, and has its size.
    """
    jitter = torch.rand((len(scenes), 2, 4), generator=chance) * 2 - 1
    if window is None:
        zeros = torch.zeros(len(scenes))
        window = Window(height, width, zeros, zeros)
    rows = window.tops[:, None].to(device) + torch.arange(window.height, device=device) + 0.5
    columns = window.lefts[:, None].to(device) + torch.arange(window.width, device=device) + 0.5
    shade = 1 + _GROUND_SHADE * (0.5 - rows / height)
    picture = _palette(device)[[scene.ground for scene in scenes]][:, :, None, None] * shade[:, None, :, None]
    picture = picture.expand(-1, -1, -1, window.width)
    for number in range(max(len(scene.things) for scene in scenes)):
        have = [index for index, scene in enumerate(scenes) if len(scene.things) > number]
        things = [scenes[index].things[number] for index in have]
        grid = _Grid(rows[have], columns[have], height, width)
        picture = _with_things(picture, have, things, grid, jitter[have, number].to(device))
    return picture.clamp(0, 1)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where pixels are in pictures of this size; one row of numbers for each picture."""

    rows: Tensor
    columns: Tensor
    height: int
    width: int


def _with_things(
    picture: Tensor, have: list[int], things: list[Thing], grid: _Grid, jitter: Tensor
) -> Tensor:
    """The pictures with these numbers, with one more thing on each."""
    side = min(grid.height, grid.width)
    middles = torch.tensor([_middle(it) for it in things], device=picture.device)
    moved = _PLACE_JITTER * side * jitter
    radius = torch.tensor([RADII[it.size] for it in things], device=picture.device) * side
    radius = radius * (1 + _SIZE_JITTER * jitter[:, 2])
    y = (grid.rows - (middles[:, 0] * grid.height + moved[:, 0])[:, None]) / radius[:, None]
    x = (grid.columns - (middles[:, 1] * grid.width + moved[:, 1])[:, None]) / radius[:, None]
    x, y = x[:, None, :], y[:, :, None]
    turn = (_TURN_JITTER * jitter[:, 3])[:, None, None]
    turned = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    distance = shape_distance([it.shape for it in things], *turned)
    cover = (0.5 - distance * radius[:, None, None]).clamp(0, 1)[:, None]
    shade = 1 - _THING_SHADE * (y + x).clamp(-2, 2)[:, None] / 2
    colour = _palette(picture.device)[[it.colour for it in things]][:, :, None, None] * shade
    picture = picture.clone()
    picture[have] = torch.lerp(picture[have], colour.clamp(0, 1), cover)
    return picture


def _middle(thing: Thing) -> tuple[float, float]:
    row, column = CELLS[thing.cell]
    return PLACES[_ROWS.index(row)], PLACES[_COLUMNS.index(column)]


def _palette(device: Any) -> Tensor:
    return torch.tensor(list(COLOURS.values()), device=device)


def shape_distance(shapes: Sequence[int], x: Tensor, y: Tensor) -> Tensor:
    """From each point to the outline of its row's shape, negative inside, in the shape's radius."""
    distance = torch.empty(torch.broadcast_shapes(x.shape, y.shape), device=x.device)
    for shape in set(shapes):
        rows = [index for index, it in enumerate(shapes) if it == shape]
        distance[rows] = _DISTANCES[shape](
            x[rows].expand_as(distance[rows]), y[rows].expand_as(distance[rows])
        )
    return distance


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 0.88


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    dx, dy = x.abs() - half_width, y.abs() - half_height
    outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt()
    return outside + torch.maximum(dx, dy).clamp(max=0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, 0.8, 0.8)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(_box(x, y, 0.98, 0.34), _box(x, y, 0.34, 0.98))


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    half, root = 0.98, math.sqrt(3)
    px, py = x.abs() - half, 0.2 - y + half / root
    folds = px + root * py > 0
    px, py = torch.where(folds, (px - root * py) / 2, px), torch.where(folds, (-root * px - py) / 2, py)
    px = px - px.clamp(-2 * half, 0)
    return -(px * px + py * py).sqrt() * py.sign()


def _star(x: Tensor, y: Tensor) -> Tensor:
    radius, inner = 1.12, 0.5
    kx, ky = math.cos(math.pi / 5), -math.sin(math.pi / 5)
    px, py = x.abs(), -y
    for sign in (1, -1):
        over = 2 * (sign * kx * px + ky * py).clamp(min=0)
        px, py = px - over * sign * kx, py - over * ky
    px, py = px.abs(), py - radius
    ex, ey = -inner * ky, inner * kx - 1
    along = ((px * ex + py * ey) / (ex * ex + ey * ey)).clamp(0, radius)
    return ((px - ex * along) ** 2 + (py - ey * along) ** 2).sqrt() * (py * ex - px * ey).sign()


_HEART: Final = 1.65


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs() / _HEART, (0.5 * _HEART - y) / _HEART
    upper = ((x - 0.25) ** 2 + (y - 0.75) ** 2).sqrt() - math.sqrt(2) / 4
    straight = torch.minimum(
        x**2 + (y - 1) ** 2, (x - (x + y).clamp(min=0) / 2) ** 2 + (y - (x + y).clamp(min=0) / 2) ** 2
    )
    lower = straight.sqrt() * (x - y).sign()
    return torch.where(x + y > 1, upper, lower) * _HEART


_DISTANCES: Final = (_circle, _square, _triangle, _star, _heart, _cross)
"""In the order of `SHAPES`."""
