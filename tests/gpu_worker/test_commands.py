"""What the first argument of `python -m gpu_worker` means."""

import sys
from types import ModuleType

import pytest

from gpu_worker.commands import main
from proto.exit_status import EXIT_BAD_CONFIGURATION


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
