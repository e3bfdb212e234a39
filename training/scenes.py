"""What is drawn: one or two shapes on a plain ground, as plain numbers. Without torch.

Colours are sRGB in 0-1. Lengths are parts of the picture's shorter side, places parts of its sides.
"""

import random
import zlib
from dataclasses import dataclass
from typing import Final, Literal

SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.86, 0.15, 0.17),
    "orange": (0.97, 0.55, 0.10),
    "yellow": (0.98, 0.85, 0.20),
    "green": (0.18, 0.62, 0.28),
    "blue": (0.13, 0.36, 0.80),
    "purple": (0.52, 0.22, 0.66),
    "white": (0.97, 0.97, 0.96),
    "black": (0.09, 0.09, 0.11),
}
COLOUR_NAMES: Final = tuple(COLOURS)
CELLS: Final = (
    ("top", "left"), ("top", "centre"), ("top", "right"),
    ("middle", "left"), ("middle", "centre"), ("middle", "right"),
    ("bottom", "left"), ("bottom", "centre"), ("bottom", "right"),
)  # fmt: skip
"""Row and column of each position."""
PLACES: Final = (0.24, 0.5, 0.76)
"""Of the centres of rows and columns."""
SIZES: Final = ("small", "medium", "large")
RADII: Final = (0.125, 0.165, 0.215)
CENTRE: Final = 4
MEDIUM: Final = 1
WHITE: Final = COLOUR_NAMES.index("white")
BLACK: Final = COLOUR_NAMES.index("black")
"""What is meant where nothing is said: in the middle, medium, on white, and black or, on black, white."""

_HELD_OUT_ONE_IN: Final = 10

Relation = Literal["above", "left"]
"""Where the first of two shapes is."""
PAIR_CELLS: Final[dict[Relation, tuple[int, int]]] = {"above": (1, 7), "left": (3, 5)}


@dataclass(frozen=True, slots=True)
class Thing:
    """All are indices into the tables above."""

    shape: int
    colour: int
    cell: int
    size: int


@dataclass(frozen=True, slots=True)
class Scene:
    ground: int
    """A colour."""
    things: tuple[Thing, ...]
    """One, or two in the order of `PAIR_CELLS`."""

    @property
    def relation(self) -> Relation | None:
        if len(self.things) == 1:
            return None
        return "above" if self.things[0].cell == PAIR_CELLS["above"][0] else "left"

    @property
    def is_held_out(self) -> bool:
        """Never trained on, with whatever words and size. By the scene itself, so no list is needed."""
        places = "" if len(self.things) > 1 else f"/{self.things[0].cell}"
        things = "+".join(f"{it.shape}/{it.colour}" for it in self.things)
        return zlib.crc32(f"{self.ground}:{things}{places}".encode()) % _HELD_OUT_ONE_IN == 0


def unsaid_colour(ground: int) -> int:
    """Of a shape of which no colour is told."""
    return WHITE if ground == BLACK else BLACK


def draw_scene(
    chance: random.Random, *, pairs: float = 0.0, unsaid: float = 0.0, held_out: bool = False
) -> Scene:
    """At random; `pairs` is the part with two shapes, `unsaid` that in which more goes without saying.

    Held-out scenes, or all the others.
    """
    two = chance.random() < pairs
    while True:
        scene = _pair(chance) if two else _single(chance)
        if unsaid and chance.random() < unsaid:
            scene = _plainer(scene, chance)
        if scene.is_held_out is held_out:
            return scene


def _single(chance: random.Random) -> Scene:
    ground, colour = chance.sample(range(len(COLOURS)), 2)
    # The middle is what is meant where nothing is said, so it is asked for more often.
    cell = CENTRE if chance.random() < 0.1 else chance.randrange(len(CELLS))
    return Scene(ground, (Thing(chance.randrange(len(SHAPES)), colour, cell, chance.randrange(len(SIZES))),))


def _plainer(scene: Scene, chance: random.Random) -> Scene:
    ground = WHITE if chance.random() < 0.7 else scene.ground
    if len(scene.things) > 1:
        return scene if any(it.colour == ground for it in scene.things) else Scene(ground, scene.things)
    (thing,) = scene.things
    return Scene(
        ground,
        (
            Thing(
                thing.shape,
                unsaid_colour(ground) if thing.colour == ground or chance.random() < 0.3 else thing.colour,
                CENTRE if chance.random() < 0.5 else thing.cell,
                MEDIUM if chance.random() < 0.5 else thing.size,
            ),
        ),
    )


def _pair(chance: random.Random) -> Scene:
    ground = chance.randrange(len(COLOURS))
    others = [colour for colour in range(len(COLOURS)) if colour != ground]
    relation: Relation = chance.choice(("above", "left"))
    first, second = (
        Thing(chance.randrange(len(SHAPES)), chance.choice(others), cell, MEDIUM)
        for cell in PAIR_CELLS[relation]
    )
    return Scene(ground, (first, second))
