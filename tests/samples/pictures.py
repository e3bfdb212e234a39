"""Reads PNGs of the embedded model back, with the scorer of `training`."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from samples.training_source import import_training

import_training()

from training.scenes import COLOURS, SHAPES  # noqa: E402
from training.scorer import Reading, read_single  # noqa: E402


def pixels_of(png: bytes) -> NDArray[np.uint8]:
    """(height, width, 3)."""
    with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
        return np.asarray(opened.convert("RGB"))


def seen_in(png: bytes) -> Reading:
    """As a picture of one thing."""
    return read_single(_floats(pixels_of(png)))


def names_of(png: bytes) -> tuple[str, str, str]:
    """Of the ground's colour, the thing's, and its shape."""
    return names_seen(pixels_of(png))


def names_seen(pixels: NDArray[np.uint8]) -> tuple[str, str, str]:
    """The same, of a picture of shape (height, width, 3)."""
    reading = read_single(_floats(pixels))
    thing = reading.things[0]
    assert thing is not None, "there is nothing in the picture"
    assert thing.shape >= 0, "its shape is none that is known"
    colours = list(COLOURS)
    return colours[reading.ground], colours[thing.colour], SHAPES[thing.shape]


def _floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / 255
