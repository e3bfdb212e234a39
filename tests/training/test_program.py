"""The command: what is missing is said in a line, and a stop leaves what can be gone on with."""

import json
import signal
from pathlib import Path

import pytest
import torch

from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED
from training import checkpoint
from training.__main__ import main
from training.course import result_file
from training.geometry import make_transformer
from training.program import Program, report_for_card
from training.recipe import PROFILES
from training.settings import TrainingSettings
from training.sizes import Placed
from training.text import TextStage


def run(folder: Path, *arguments: str) -> int:
    return main(["--folder", str(folder), "--profile", "tiny", "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--stage", "flow"), "stage autoencoder is not finished: python -m training --stage autoencoder"),
        (("--stage", "export"), "stage autoencoder has not begun: python -m training --stage autoencoder"),
        (("--stage", "evaluate"), "no such folder"),
    ],
)
def test_what_is_missing_is_said(
    arguments: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *arguments) == EXIT_BAD_CONFIGURATION
    assert expected in capsys.readouterr().err


def test_a_signal_ends_it_after_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = TextStage.losses

    def interrupted(stage: TextStage, step: int) -> dict[str, object]:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return losses(stage, step)

    monkeypatch.setattr(TextStage, "losses", interrupted)
    monkeypatch.setattr(TextStage, "measure", lambda _self, _weights: {})
    before = signal.getsignal(signal.SIGTERM)
    assert run(tmp_path, "--stage", "text") == EXIT_INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "text.checkpoint").is_file()
    monkeypatch.setattr(TextStage, "losses", losses)
    assert run(tmp_path, "--stage", "text") == 0
    assert result_file(tmp_path, "text").is_file()
    assert not (tmp_path / "text.checkpoint").exists()


def test_what_cannot_be_gone_on_with_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "text.checkpoint"
    file.write_bytes(b"nothing")
    assert run(tmp_path, "--stage", "text") == EXIT_BAD_CONFIGURATION
    assert f"{file}: not what a stage writes: " in capsys.readouterr().err
    tensors = {"model.weight": torch.zeros(1)}
    checkpoint.write(file, checkpoint.Checkpoint(1, 1, tensors))
    assert run(tmp_path, "--stage", "text") == EXIT_BAD_CONFIGURATION
    assert f"{file}: tensors of another model: " in capsys.readouterr().err
    taught = checkpoint.state_of(TextStage(PROFILES["tiny"]["text"], seed=1, device="cpu").trained)
    tensors = {
        f"{kind}.{name}": tensor.flatten()[:1].clone()
        for kind in ("model", "average")
        for name, tensor in taught.items()
    }
    for seed, problem in ((2, "of seed 2, not 1"), (1, "tensors of another shape: ")):
        checkpoint.write(file, checkpoint.Checkpoint(1, seed, tensors))
        assert run(tmp_path, "--stage", "text") == EXIT_BAD_CONFIGURATION
        assert f"{file}: {problem}" in capsys.readouterr().err
    for name in ("autoencoder", "text"):
        checkpoint.write(result_file(tmp_path, name), checkpoint.Checkpoint(1, 1, tensors))
    assert run(tmp_path, "--stage", "flow") == EXIT_BAD_CONFIGURATION
    assert "stage autoencoder: tensors of another model: " in capsys.readouterr().err


def test_what_others_were_trained_with_is_not_trained_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("flow.safetensors", "guidance.checkpoint", "decoder.checkpoint"):
        (tmp_path / name).write_bytes(b"")
    assert run(tmp_path, "--stage", "text") == EXIT_BAD_CONFIGURATION
    assert "remove flow.safetensors, guidance.checkpoint\n" in capsys.readouterr().err


def test_the_transformer_of_the_latest_stage_is_exported(tmp_path: Path) -> None:
    program = Program(load_settings(TrainingSettings, ["--folder", str(tmp_path)], "training"))
    for number, (name, module) in enumerate(
        [("flow", make_transformer()), ("sizes", Placed()), ("guidance", make_transformer())]
    ):
        tensors = {key: torch.full_like(it, number) for key, it in checkpoint.state_of(module).items()}
        checkpoint.write(tmp_path / f"{name}.safetensors", checkpoint.Checkpoint(1, 1, tensors))
        assert float(program._transformer().x_embedder.weight.detach().mean()) == number


def test_the_card_has_what_was_measured_of_these_weights(tmp_path: Path) -> None:
    scores = dict.fromkeys(("ground", "colour", "position", "shape", "size", "all"), 0.5)
    trial = {
        "prompts": 20,
        "height": 128,
        "width": 256,
        "steps": 8,
        "guidance": 3.5,
        "pairs": True,
        "shuffled": False,
    }
    rows = [
        {"revision": revision, "bits": bits, "trial": trial, "scores": scores | {"colour": 0.951}}
        for revision, bits in (("tiny-1-aa", 16), ("tiny-1-bb", 4))
    ]
    assert "## Measured" not in report_for_card(tmp_path, "tiny", 1, "tiny-1-bb")
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = report_for_card(tmp_path, "tiny", 1, "tiny-1-bb")
    assert "| 4 | 20 | 256 x 128 | 8 | 3.5 | pairs | 50.0% | 95.1% | 50.0% | 50.0% | 50.0% |" in report
    assert report.count("256 x 128") == 1
