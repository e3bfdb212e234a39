"""How good a model folder is: held-out prompts through the worker's own engine, read back by the scorer."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.flux import FluxEngine
from proto.messages import ImageParameters
from training import chance
from training.captions import caption
from training.renderer import render
from training.scenes import Scene, draw_scene
from training.scorer import Picture, agreement, read

_SHEET: Final = (4, 6)
"""Rows and columns."""
_SAY_EVERY: Final = 100

Scores = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is asked of the model. The same trial has the same prompts and seeds, whatever the model."""

    prompts: int
    steps: int
    guidance: float
    height: int
    width: int
    pairs: bool = False
    shuffled: bool = False
    """Each picture is drawn from the next scene's prompt: what a scorer finds that cannot fail."""
    terse: bool = False
    """Scenes of which much goes without saying, and is not said."""

    def scenes(self) -> list[Scene]:
        numbers = chance.numbers("trial", self.pairs)
        return [
            draw_scene(numbers, pairs=float(self.pairs), unsaid=float(self.terse), held_out=True)
            for _ in range(self.prompts)
        ]


def truth(trial: Trial) -> Scores:
    """The scorer's own accuracy: what it reads in drawn pictures of these scenes."""
    scenes = trial.scenes()
    pictures = (
        render([scene], trial.height, trial.width, chance.tensors("truth", number))[0]
        .permute(1, 2, 0)
        .numpy()
        for number, scene in enumerate(scenes)
    )
    return _means([agreement(scene, read(it, scene)) for scene, it in zip(scenes, pictures, strict=True)])


def evaluate(
    folder: Path, trial: Trial, *, device: str, threads: int, sheet: Path | None, say: Callable[[str], None]
) -> Scores:
    """The part of pictures in which each property is right, and the seconds a picture took.

    Raises `ModelUnusable` as the engine does.
    """
    engine = FluxEngine(folder, device=device, threads=threads)
    engine.load(lambda _what, _percent: None)
    engine.warm_up()
    scenes = trial.scenes()
    numbers = chance.numbers("words", trial.pairs)
    captions = [caption(scene, numbers, terse=float(trial.terse)) for scene in scenes]
    if trial.shuffled:
        captions = captions[1:] + captions[:1]
    scores, first = [], []
    processor_s = time.process_time()
    for number, (scene, words) in enumerate(zip(scenes, captions, strict=True)):
        image = engine.generate(_job(trial, words, number), lambda _phase, _step: None).image
        picture = (image / 255).astype(np.float32)
        scores.append(agreement(scene, read(picture, scene)))
        if number < _SHEET[0] * _SHEET[1]:
            first.append(picture)
        if (number + 1) % _SAY_EVERY == 0:
            say(f"{number + 1} of {trial.prompts}: {_listed(_means(scores))}")
    if sheet is not None:
        write_sheet(sheet, first)
    return _means(scores) | {"processor_s": (time.process_time() - processor_s) / len(scenes)}


def write_sheet(file: Path, pictures: list[Picture]) -> None:
    """In rows, from the top left."""
    rows, columns = _SHEET
    blank = np.ones_like(pictures[0])
    pictures = (pictures + [blank] * (rows * columns))[: rows * columns]
    lines = [np.concatenate(pictures[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    Image.fromarray((np.concatenate(lines, axis=0) * 255).round().astype(np.uint8)).save(file)


def _job(trial: Trial, words: str, number: int) -> EngineJob:
    parameters = ImageParameters(
        height=trial.height, width=trial.width, steps=trial.steps, guidance=trial.guidance, seed=number
    )
    return EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt=words, parameters=parameters)


def _means(scores: list[dict[str, Any]]) -> Scores:
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _listed(scores: Scores) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in scores.items())
