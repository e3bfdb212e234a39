"""Runs the stages in their order, each from where it was, and what can be done with their results."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, assert_never

import torch

from gpu_worker.engines.devices import choose_device
from gpu_worker.manifest import read_manifest
from training.autoencoder import AutoencoderStage
from training.checkpoint import CheckpointUnusable, load_state
from training.course import Course, Stage, checkpoint_file, result_file, steps_done, weights_of
from training.curves import draw_curves
from training.decoder import DecoderStage
from training.evaluation import Trial, evaluate, truth
from training.export import write_model
from training.flow import FlowStage
from training.geometry import make_transformer, make_vae
from training.guidance import GuidanceStage
from training.latents import Latents, measured_latents
from training.recipe import PROFILES, STAGES, ProfileName, StageName, follows
from training.settings import TrainingSettings
from training.sizes import SizesStage, transformer_weights
from training.text import TextEncoders, TextStage, encoder_weights

_MODEL: Final = "model"
_EVALUATIONS: Final = "evaluations.jsonl"
_PROPERTIES: Final = ("ground", "colour", "position", "shape", "size", "all")


class MissingStage(Exception):
    """An earlier stage has no result, or none that the later ones are of. The text says which."""


class Program:
    """One training folder."""

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._folder: Path = settings.folder.absolute()
        self._device: str = choose_device(settings.device, settings.device).type
        self._started = time.monotonic()
        self._stopped = False

    def run(self) -> bool:
        """Whether all that was asked for is done; False if it was stopped.

        Raises `MissingStage`, `CheckpointUnusable`, `ModelUnusable`, `OSError`.
        """
        torch.set_num_threads(self._settings.threads)
        self._folder.mkdir(parents=True, exist_ok=True)
        match self._settings.stage:
            case "all":
                return all(self._learn(name) for name in STAGES) and self._export()
            case "export":
                return self._export()
            case "evaluate":
                return self._evaluate()
            case "curves":
                for file in draw_curves(self._folder):
                    self._say(str(file))
                return True
            case name:
                return self._learn(name)

    @contextmanager
    def _stopping_after_the_step(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM meanwhile: a step that was cut off could not be gone on with."""
        before = {sign: signal.signal(sign, self._stop) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _stop(self, _sign: int, _frame: object) -> None:
        self._stopped = True

    def _must_stop(self) -> bool:
        minutes = self._settings.minutes
        return self._stopped or (minutes is not None and time.monotonic() - self._started > 60 * minutes)

    def _learn(self, name: StageName) -> bool:
        if result_file(self._folder, name).is_file():
            return True
        self._refuse_what_follows(name)
        stage = self._stage(name)
        course = Course(stage, self._folder, seed=self._settings.seed, device=self._device, say=self._say)
        with self._stopping_after_the_step():
            return course.run(self._must_stop, self._settings.measure_steps)

    def _refuse_what_follows(self, name: StageName) -> None:
        files = [
            file
            for each in STAGES
            if each in follows(name)
            for file in (result_file(self._folder, each), checkpoint_file(self._folder, each))
            if file.is_file()
        ]
        if files:
            raise MissingStage(
                f"{self._folder}: stage {name} is not finished, but others were trained with its result:"
                f" remove {', '.join(file.name for file in files)}"
            )

    def _stage(self, name: StageName) -> Stage:
        recipe, seed, device = PROFILES[self._settings.profile][name], self._settings.seed, self._device
        match name:
            case "autoencoder":
                return AutoencoderStage(recipe, seed=seed, device=device)
            case "text":
                return TextStage(recipe, seed=seed, device=device)
            case "flow":
                return FlowStage(recipe, self._latents(), self._text(), seed=seed, device=device)
            case "sizes":
                begun, latents, text = self._finished("flow"), self._latents(), self._text()
                with self._result_of("flow"):
                    return SizesStage(recipe, latents, text, begun, seed=seed, device=device)
            case "guidance":
                teacher = transformer_weights(self._finished("sizes"))
                latents, text = self._latents(), self._text()
                with self._result_of("sizes"):
                    return GuidanceStage(recipe, latents, text, teacher, seed=seed, device=device)
            case "decoder":
                return DecoderStage(recipe, self._latents(), seed=seed, device=device)
            case _:
                assert_never(name)

    def _finished(self, name: StageName) -> dict[str, Any]:
        if not result_file(self._folder, name).is_file():
            raise MissingStage(
                f"{self._folder}: stage {name} is not finished: python -m training --stage {name}"
            )
        return weights_of(self._folder, name) or {}

    def _latents(self) -> Latents:
        vae = make_vae()
        self._load(vae, "autoencoder", self._begun("autoencoder"))
        return measured_latents(vae.to(self._device), self._device)

    def _text(self) -> TextEncoders:
        text = TextEncoders()
        self._load(text, "text", encoder_weights(self._begun("text")))
        text.to(self._device).eval().requires_grad_(requires_grad=False)
        return text

    def _begun(self, name: StageName) -> dict[str, Any]:
        if self._settings.stage != "export":
            return self._finished(name)
        found = weights_of(self._folder, name)
        if found is None:
            raise MissingStage(
                f"{self._folder}: stage {name} has not begun: python -m training --stage {name}"
            )
        return found

    @contextmanager
    def _result_of(self, name: StageName) -> Iterator[None]:
        """Whose files they are that cannot be used."""
        try:
            yield
        except CheckpointUnusable as error:
            raise CheckpointUnusable(f"{self._folder}: stage {name}: {error}") from error

    def _load(self, module: Any, name: StageName, tensors: dict[str, Any]) -> None:
        with self._result_of(name):
            load_state(module, tensors)

    def _transformer(self) -> Any:
        """As the last stage that has begun with it would leave it."""
        transformer = make_transformer()
        if (guided := weights_of(self._folder, "guidance")) is not None:
            self._load(transformer, "guidance", guided)
        elif (placed := weights_of(self._folder, "sizes")) is not None:
            self._load(transformer, "sizes", transformer_weights(placed))
        else:
            self._load(transformer, "flow", self._begun("flow"))
        return transformer

    def _export(self) -> bool:
        latents = self._latents()
        transformer = self._transformer()
        if (decoder := weights_of(self._folder, "decoder")) is not None:
            self._load(latents.vae.decoder, "decoder", decoder)
        size = write_model(
            self._folder / _MODEL,
            latents=latents,
            text=self._text(),
            transformer=transformer,
            recipe=f"{self._settings.profile}-{self._settings.seed}",
            report=partial(report_for_card, self._folder, self._settings.profile, self._settings.seed),
        )
        self._say(f"{self._folder / _MODEL}: {size} bytes of weights")
        return True

    def _evaluate(self) -> bool:
        it = self._settings
        trial = Trial(
            prompts=it.prompts, steps=it.steps, guidance=it.guidance, height=it.height, width=it.width,
            pairs=it.pairs, shuffled=it.shuffled, terse=it.terse,
        )  # fmt: skip
        folder = it.model or self._folder / _MODEL
        found = evaluate(
            folder,
            trial,
            device=self._device,
            threads=it.threads,
            sheet=self._folder / "sheet.png",
            say=self._say,
        )
        manifest = read_manifest(folder)
        result = {
            "model": str(folder),
            "revision": "" if manifest is None else manifest.revision,
            "bits": 16 if manifest is None or manifest.quantization is None else manifest.quantization.bits,
            "trial": asdict(trial),
            "scores": found,
            "scorer_on_truth": truth(trial),
        }
        with (self._folder / _EVALUATIONS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(result) + "\n")
        self._say(json.dumps(result, indent=1))
        return True

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:8.0f} s  {text}", flush=True)


def report_for_card(folder: Path, profile: ProfileName, seed: int, revision: str) -> str:
    """For the model card: the steps that each stage has seen, and what was measured of these weights."""
    lines = [
        "",
        "## Training",
        "",
        f"Profile `{profile}`, seed {seed}.",
        "",
        "| stage | steps |",
        "|---|---|",
        *(f"| {name} | {steps_done(folder, name)} of {PROFILES[profile][name].steps} |" for name in STAGES),
    ]
    if measured := [it for it in _evaluations(folder) if it.get("revision") == revision]:
        lines += [
            "",
            "## Measured",
            "",
            "Held-out prompts, per cent of pictures in which it is right.",
            "",
            f"| bits | prompts | size | steps | guidance | | {' | '.join(_PROPERTIES)} |",
            "|---" * (6 + len(_PROPERTIES)) + "|",
            *map(_row, measured),
        ]
    return "\n".join(lines) + "\n"


def _evaluations(folder: Path) -> list[dict[str, Any]]:
    file = folder / _EVALUATIONS
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _row(evaluation: dict[str, Any]) -> str:
    trial, scores = evaluation["trial"], evaluation["scores"]
    kind = ", ".join(name for name in ("pairs", "shuffled", "terse") if trial.get(name))
    cells = [
        evaluation["bits"], trial["prompts"], f"{trial['width']} x {trial['height']}", trial["steps"],
        f"{trial['guidance']:g}", kind, *(f"{scores[name]:.1%}" for name in _PROPERTIES),
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"
