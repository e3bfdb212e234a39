"""What an engine process says when its model does not come up."""

import threading
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gpu_worker import engine_child
from gpu_worker.engine_child import EngineChild, StepClock
from gpu_worker.engine_pipe import EngineOptions, LastWords
from gpu_worker.engines.engine import (
    EngineBroken,
    LoadProgress,
    ModelUnusable,
    NotEnoughFreeMemory,
    OutOfDeviceMemory,
)
from gpu_worker.engines.fake import FakeEngine
from gpu_worker.model_store import Embedded, Fake
from proto.exit_status import EXIT_BAD_CONFIGURATION
from proto.failures import FailureCode
from proto.messages import JobPhase, ModelCard


class SilentWorker:
    """The pipe to a worker that only listens."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, message: Any) -> None:
        self.told.append(message)

    def recv(self) -> Any:
        threading.Event().wait()


class Unloadable(FakeEngine):
    def __init__(self, error: Exception, *, in_warm_up: bool) -> None:
        super().__init__(step_s=0, faults=False)
        self.error, self.in_warm_up = error, in_warm_up

    def load(self, on_progress: LoadProgress) -> ModelCard:
        if not self.in_warm_up:
            raise self.error
        return super().load(on_progress)

    def warm_up(self) -> None:
        raise self.error


def test_an_embedded_model_that_is_not_whole_is_found_before_anything_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_worker.model_store.EMBEDDED_FOLDER", tmp_path)
    with pytest.raises(ModelUnusable, match="install the worker again"):
        engine_child.make_engine(Embedded(warning=""), EngineOptions())


@pytest.mark.parametrize("in_warm_up", [False, True])
@pytest.mark.parametrize(
    ("error", "hopeless", "temporary", "status"),
    [
        (ModelUnusable("memory plan bf16 needs about 37.4 GB"), True, False, EXIT_BAD_CONFIGURATION),
        (NotEnoughFreeMemory("others use 19.3 GB now"), False, True, 1),
        (OutOfDeviceMemory("memory plan 4bit: out of memory in a first image"), False, False, 1),
    ],
)
def test_too_small_is_hopeless_and_too_full_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    hopeless: bool,
    temporary: bool,
    status: int,
    in_warm_up: bool,
) -> None:
    monkeypatch.setattr(
        engine_child, "make_engine", lambda _choice, _options: Unloadable(error, in_warm_up=in_warm_up)
    )
    worker = SilentWorker()
    code = EngineChild(worker, 1).live(Fake(step_s=0, load_s=0, faults=False), EngineOptions())  # type: ignore[arg-type]
    assert code == status
    assert worker.told[-1] == LastWords(reason=str(error), hopeless=hopeless, temporary=temporary)


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (OSError(5, "cannot read", "/home/alice/model"), "it raised OSError, see its log", None),
        (EngineBroken("CUDA error near 'a secret prompt'"), "its device failed", FailureCode.DEVICE_POISONED),
    ],
)
def test_what_an_error_says_stays_in_the_log(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, code: FailureCode | None
) -> None:
    """The last words are in reports, which clients see."""
    monkeypatch.setattr(
        engine_child, "make_engine", lambda _choice, _options: Unloadable(error, in_warm_up=True)
    )
    worker = SilentWorker()
    with capture_logs() as logs:
        status = EngineChild(worker, 1).live(Fake(step_s=0, load_s=0, faults=False), EngineOptions())  # type: ignore[arg-type]
    assert status == 1
    assert worker.told[-1] == LastWords(reason=reason, code=code)
    assert logs[-1]["log_level"] == "error"


def test_the_time_of_the_steps_is_that_of_the_last_try() -> None:
    clock = StepClock()
    told = [
        (JobPhase.TEXT, 0, 1.0),
        (JobPhase.STEP, 0, 2.0),
        (JobPhase.STEP, 1, 3.0),  # out of memory: it begins anew
        (JobPhase.TEXT, 0, 10.0),
        (JobPhase.STEP, 0, 11.0),
        (JobPhase.STEP, 1, 12.0),
        (JobPhase.STEP, 2, 13.5),
    ]
    for each in told:
        clock.progressed(*each)
        assert clock.steps_time_s is None
    clock.progressed(JobPhase.DECODE, 2, 13.75)
    assert clock.steps_time_s == 2.75
