"""What the first argument of `python -m gpu_worker` means."""

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from gpu_worker.commands import main
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_INTERRUPTED


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("command", ["prefetch", "quantize"])
def test_a_command_gets_the_other_arguments(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []
    module = ModuleType(f"gpu_worker.{command}")
    module.main = lambda argv: given.append(argv) or 7  # type: ignore[attr-defined, func-returns-value]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main([command, "--help"]) == 7
    assert given == [["--help"]]


def test_missing_libraries_are_named_with_their_requirements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gpu_worker.prefetch", None)
    assert main(["prefetch"]) == EXIT_BAD_CONFIGURATION
    told = capsys.readouterr().err
    assert "gpu_worker.prefetch" in told
    assert "-m pip install -r requirements/gpu_worker.txt" in told


def test_sigterm_says_good_bye_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("gpu_worker.prefetch")
    module.main = lambda _argv: signal.raise_signal(signal.SIGTERM)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(KeyboardInterrupt):
        main(["prefetch"])


def test_ctrl_c_while_the_libraries_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted)
    assert main(["quantize"]) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "gpu_worker quantize: stopped before it began\n"


@pytest.mark.parametrize("arguments", [["--model-dir"], ["quantize", "--source"], ["quantize", "--target"]])
def test_a_folder_without_a_name(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, ""])
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    assert f"{arguments[-1]} (FLUX_" in (told := capsys.readouterr().err)
    assert "must name a folder; the present one is ." in told


def test_quantize_knows_a_wrong_source_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["quantize", "--source", str(tmp_path / "none")]) == EXIT_BAD_CONFIGURATION
    assert f"{tmp_path / 'none'}: no such folder" in capsys.readouterr().err


def test_anything_else_is_a_worker_whose_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "python -m gpu_worker prefetch" in told
    assert "python -m gpu_worker quantize" in told
    with pytest.raises(SystemExit) as ended:
        main(["prefech"])
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    assert "prefech" in capsys.readouterr().err
