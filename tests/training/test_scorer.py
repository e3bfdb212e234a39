"""The renderer draws what the scorer reads; the scorer can fail."""

import random

import numpy as np
import pytest
import torch

from training.renderer import Window, render
from training.scenes import Scene, draw_scene
from training.scorer import Picture, agreement, read, read_single


def drawn(scenes: list[Scene], height: int, width: int) -> list[Picture]:
    jitter = torch.Generator().manual_seed(1)
    few = (scenes[start : start + 8] for start in range(0, len(scenes), 8))
    return [it.permute(1, 2, 0).numpy() for some in few for it in render(some, height, width, jitter)]


@pytest.mark.parametrize(
    ("pairs", "height", "width", "count"),
    [
        (0.0, 256, 256, 100),
        (1.0, 128, 128, 100),
        (0.0, 128, 128, 200),
        (0.0, 160, 320, 30),
        (0.0, 384, 192, 30),
    ],
)
def test_drawn_truth_is_read(pairs: float, height: int, width: int, count: int) -> None:
    chance = random.Random(4)
    scenes = [draw_scene(chance, pairs=pairs) for _ in range(count)]
    scores = [
        agreement(scene, read(it, scene))
        for scene, it in zip(scenes, drawn(scenes, height, width), strict=True)
    ]
    for name in scores[0]:
        assert sum(score[name] for score in scores) >= 0.99 * count, name


def test_other_pictures_are_told_apart() -> None:
    chance = random.Random(5)
    scenes = [draw_scene(chance) for _ in range(100)]
    pictures = drawn(scenes, 128, 128)
    others = scenes[1:] + scenes[:1]
    scores = [agreement(scene, read(it, scene)) for scene, it in zip(others, pictures, strict=True)]
    for name in ("ground", "colour", "position", "shape", "all"):
        assert sum(score[name] for score in scores) < 40, name


def test_noise_and_emptiness_are_no_scene() -> None:
    noise = np.random.default_rng(1).random((128, 128, 3), np.float32)
    (found,) = read_single(noise).things
    assert found is None or found.shape == -1
    assert read_single(np.ones((128, 128, 3), np.float32)).things == (None,)


def test_a_window_is_a_piece_of_the_picture() -> None:
    chance = random.Random(6)
    scenes = [draw_scene(chance, pairs=0.5) for _ in range(6)]
    tops, lefts = torch.arange(6) * 11, torch.arange(6) * 9
    whole = render(scenes, 128, 160, torch.Generator().manual_seed(2))
    pieces = render(scenes, 128, 160, torch.Generator().manual_seed(2), Window(64, 48, tops, lefts))
    for number in range(6):
        top, left = int(tops[number]), int(lefts[number])
        assert torch.allclose(pieces[number], whole[number, :, top : top + 64, left : left + 48], atol=1e-5)
