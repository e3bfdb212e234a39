"""Takes a stage through its steps: optimizer, averaged weights, checkpoints, the curve."""

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from training import checkpoint
from training.optimizers import load_states, optimizers_for, states_of
from training.recipe import StageName, StageRecipe

Losses = dict[str, Any]
"""By name, each a number; `loss` is the one that falls."""

_LOG_STEPS: Final = 50
_SAVE_S: Final = 300.0
_GRADIENT_MAX: Final = 1.0


class Stage(Protocol):
    name: StageName
    recipe: StageRecipe

    @property
    def trained(self) -> Any:
        """A `torch.nn.Module` with all that this stage changes."""

    def losses(self, step: int) -> Losses:
        """Of this step; random only by its number."""

    def measure(self, weights: checkpoint.Tensors) -> dict[str, float]:
        """How good these weights are, on what was held out. It may take a minute."""


class Course:
    """One stage in one folder: `NAME.safetensors` is its result, `NAME.checkpoint` what it goes on from."""

    def __init__(
        self, stage: Stage, folder: Path, *, seed: int, device: str, say: Callable[[str], None]
    ) -> None:
        self._stage = stage
        self._folder = folder
        self._seed = seed
        self._device = device
        self._say = say
        self._module = stage.trained
        self._optimizers = optimizers_for(self._module, stage.recipe)
        self._step = 0
        self._average = {
            name: tensor.detach().clone() for name, tensor in checkpoint.state_of(self._module).items()
        }
        self._sums: dict[str, Any] = {}

    def run(self, must_stop: Callable[[], bool], measure_steps: int) -> bool:
        """Whether the stage is finished; False if it had to stop before. Asked between two steps.

        Raises `OSError`, `CheckpointUnusable`.
        """
        recipe, name = self._stage.recipe, self._stage.name
        file = checkpoint_file(self._folder, name)
        if (found := checkpoint.read(file)) is not None:
            try:
                self._restore(found)
            except checkpoint.CheckpointUnusable as error:
                raise checkpoint.CheckpointUnusable(f"{file}: {error}") from error
        saved = time.monotonic()
        while self._step < recipe.steps:
            if must_stop():
                self._save()
                self._say(f"{name}: stopped at step {self._step} of {recipe.steps}")
                return False
            if time.monotonic() - saved > _SAVE_S:
                self._save()
                saved = time.monotonic()
            self._take_step()
            if self._step % measure_steps == 0 and self._step < recipe.steps:
                self._measure()
        self._measure()
        checkpoint.write(
            result_file(self._folder, name), checkpoint.Checkpoint(self._step, self._seed, self._average)
        )
        file.unlink(missing_ok=True)
        return True

    def _take_step(self) -> None:
        recipe = self._stage.recipe
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(self._step)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._device != "cpu"):
            losses = self._stage.losses(self._step)
        self._module.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self._module.parameters(), _GRADIENT_MAX)
        for optimizer in self._optimizers:
            optimizer.step()
        self._blend(recipe.average_at(self._step))
        self._step += 1
        self._note(losses)

    def _blend(self, keep: float) -> None:
        with torch.no_grad():
            for name, tensor in checkpoint.state_of(self._module).items():
                if tensor.is_floating_point():
                    self._average[name].lerp_(tensor, 1 - keep)

    def _note(self, losses: Losses) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        if self._step % _LOG_STEPS == 0 or self._step == self._stage.recipe.steps:
            count = (self._step - 1) % _LOG_STEPS + 1
            means = {name: float(value) / count for name, value in self._sums.items()}
            self._sums = {}
            self._write_row(means)
            self._say(f"{self._stage.name} {self._step}/{self._stage.recipe.steps}: {_listed(means)}")

    def _measure(self) -> None:
        with torch.inference_mode():
            found = self._stage.measure(self._average)
        self._write_row(found)
        self._say(f"{self._stage.name} {self._step}: measured {_listed(found)}")

    def _write_row(self, values: dict[str, float]) -> None:
        file = curve_file(self._folder, self._stage.name)
        is_new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(("step", "name", "value"))
            writer.writerows((self._step, name, f"{value:.6g}") for name, value in sorted(values.items()))

    def _save(self) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in checkpoint.state_of(self._module).items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self._average.items()}
        states = states_of(self._optimizers, self._module)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in states.items()}
        tensors |= {f"sum.{name}": torch.as_tensor(value) for name, value in self._sums.items()}
        file = checkpoint_file(self._folder, self._stage.name)
        checkpoint.write(file, checkpoint.Checkpoint(self._step, self._seed, tensors))

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        if found.seed != self._seed:
            raise checkpoint.CheckpointUnusable(f"of seed {found.seed}, not {self._seed}")
        average = checkpoint.part(found.tensors, "average")
        checkpoint.check_alike(self._average, average)
        checkpoint.load_state(self._module, checkpoint.part(found.tensors, "model"))
        self._step = found.step
        self._average = {name: tensor.to(self._device) for name, tensor in average.items()}
        if found.step:  # Before the first step optimizers have no states.
            load_states(self._optimizers, self._module, checkpoint.part(found.tensors, "optimizer"))
        self._sums = {
            name: value.to(self._device) for name, value in checkpoint.part(found.tensors, "sum").items()
        }
        forget_after(curve_file(self._folder, self._stage.name), found.step)


def result_file(folder: Path, name: StageName) -> Path:
    return folder / f"{name}.safetensors"


def weights_of(folder: Path, name: StageName) -> checkpoint.Tensors | None:
    """The finished ones, or what an unfinished stage would give now; None if it has not begun."""
    if (finished := checkpoint.read(result_file(folder, name))) is not None:
        return finished.tensors
    begun = checkpoint.read(checkpoint_file(folder, name))
    return None if begun is None else checkpoint.part(begun.tensors, "average")


def steps_done(folder: Path, name: StageName) -> int:
    found = checkpoint.read(result_file(folder, name)) or checkpoint.read(checkpoint_file(folder, name))
    return 0 if found is None else found.step


def checkpoint_file(folder: Path, name: StageName) -> Path:
    return folder / f"{name}.checkpoint"


def curve_file(folder: Path, name: StageName) -> Path:
    return folder / f"{name}.csv"


def forget_after(file: Path, step: int) -> None:
    """Rows that a killed run wrote after its last checkpoint: they will be written again."""
    if file.exists():
        with file.open(newline="", encoding="utf-8") as stream:
            head, *rows = csv.reader(stream)
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([head, *(row for row in rows if int(row[0]) <= step)])


def _listed(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in sorted(values.items()))
