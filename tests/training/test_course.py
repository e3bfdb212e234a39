"""A stage that is stopped and goes on ends in the same bytes as one that was not."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from training import autoencoder, decoder, flow
from training.autoencoder import AutoencoderStage, untrained_vae
from training.checkpoint import state_of
from training.course import Course, Stage, curve_file, result_file, weights_of
from training.decoder import DecoderStage
from training.flow import FlowStage
from training.geometry import make_transformer
from training.guidance import GuidanceStage
from training.latents import Latents
from training.recipe import STAGES, StageName, StageRecipe
from training.sizes import SizesStage
from training.text import TextEncoders, TextStage

RECIPE = StageRecipe(steps=3, batch=2, rate=1e-3, warm_up=2, muon=True, other_sizes=0.5)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (AutoencoderStage, TextStage, FlowStage, SizesStage, GuidanceStage, DecoderStage):
        monkeypatch.setattr(stage, "measure", lambda _self, _weights: {"measured": 1.0})
    monkeypatch.setattr(autoencoder, "_PIECES", ((0.6, 32, 1), (1.0, 64, 2)))
    monkeypatch.setattr(decoder, "_SIDES", (64, 96))
    # A shard ends within the steps, and small pictures are drawn in the other sizes.
    monkeypatch.setattr(flow, "_SHARD_STEPS", 2)
    monkeypatch.setattr(flow, "SIDE", 64)
    monkeypatch.setattr(flow, "_SIDES", (32, 64))


def stage(name: StageName, seed: int) -> Stage:
    torch.manual_seed(7)
    latents = Latents(untrained_vae(7), 0.1, 0.9)
    text = TextEncoders().eval()
    match name:
        case "autoencoder":
            return AutoencoderStage(RECIPE, seed=seed, device="cpu")
        case "text":
            return TextStage(RECIPE, seed=seed, device="cpu")
        case "flow":
            return FlowStage(RECIPE, latents, text, seed=seed, device="cpu")
        case "sizes":
            begun = state_of(make_transformer())
            return SizesStage(RECIPE, latents, text, begun, seed=seed, device="cpu")
        case "guidance":
            teacher = state_of(make_transformer())
            return GuidanceStage(RECIPE, latents, text, teacher, seed=seed, device="cpu")
        case "decoder":
            return DecoderStage(RECIPE, latents, seed=seed, device="cpu")


def course(folder: Path, name: StageName, seed: int = 1) -> Course:
    folder.mkdir(exist_ok=True)
    return Course(stage(name, seed), folder, seed=seed, device="cpu", say=lambda _text: None)


def after(steps: int) -> Callable[[], bool]:
    answers: Iterator[bool] = iter([False] * steps + [True])
    return lambda: next(answers)


@pytest.mark.parametrize("name", STAGES)
def test_going_on_is_as_never_having_stopped(name: StageName, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert course(whole, name).run(after(3), 100)
    assert not course(parts, name).run(after(1), 100)
    assert weights_of(parts, name) is not None
    assert course(parts, name).run(after(2), 100)
    assert result_file(parts, name).read_bytes() == result_file(whole, name).read_bytes()
    assert curve_file(parts, name).read_bytes() == curve_file(whole, name).read_bytes()


def test_a_stop_before_the_first_step_leaves_what_can_be_gone_on_with(tmp_path: Path) -> None:
    assert not course(tmp_path, "text").run(after(0), 100)
    assert course(tmp_path, "text").run(after(3), 100)


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    for seed in (1, 2):
        assert not course(tmp_path / str(seed), "text", seed).run(after(1), 100)
    weights = [weights_of(tmp_path / str(seed), "text") for seed in (1, 2)]
    assert weights[0] is not None
    assert weights[1] is not None
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]


def test_rows_after_the_last_checkpoint_are_written_once(tmp_path: Path) -> None:
    """A killed process had measured more than it saved."""
    assert not course(tmp_path, "text").run(after(1), 100)
    checkpoint = (tmp_path / "text.checkpoint").read_bytes()
    assert course(tmp_path, "text").run(after(2), 100)
    curve = curve_file(tmp_path, "text").read_bytes()
    result_file(tmp_path, "text").unlink()
    (tmp_path / "text.checkpoint").write_bytes(checkpoint)
    assert course(tmp_path, "text").run(after(2), 100)
    assert curve_file(tmp_path, "text").read_bytes() == curve
