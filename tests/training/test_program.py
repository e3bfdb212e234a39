"""The command: what is missing is said in a line, and a stop leaves what can be gone on with."""

import signal
from pathlib import Path

import pytest

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED
from training.__main__ import main
from training.course import result_file
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
