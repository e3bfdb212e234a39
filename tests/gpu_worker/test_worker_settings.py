"""The worker's settings: where they come from, and what is said about bad ones."""

import socket
from pathlib import Path

import pytest

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.limits import SessionLimits
from gpu_worker.memory_plan import MemoryPlan
from gpu_worker.model_store import Fake
from gpu_worker.own_gpu import OwnGpu
from gpu_worker.settings import WorkerSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def load(*arguments: str) -> WorkerSettings:
    return load_settings(WorkerSettings, arguments, "gpu_worker")


def test_defaults() -> None:
    settings = load()
    assert settings.broker_endpoints == ("tcp://127.0.0.1:5561",)
    assert settings.worker_id.startswith(f"{socket.gethostname()}-")
    assert settings.engine_options.threads is None
    assert settings.session_limits == SessionLimits()


def test_environment_and_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_WORKER_ENGINE", "fake")
    monkeypatch.setenv("FLUX_WORKER_FAKE_STEP_S", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    settings = load(
        "--fake-step-s", "0.25", "--fake-faults", "--worker-id", "rack4.gpu-1", "--step-limit-s", "5"
    )
    assert settings.engine_choice() == Fake(step_s=0.25, load_s=0.0, faults=True)
    assert settings.worker_id == "rack4.gpu-1"
    assert settings.engine_options.cuda_visible_devices == "1", "one GPU for each worker"
    assert settings.session_limits.step_s == 5


def test_the_engine_sees_the_gpu_of_this_worker_alone() -> None:
    settings = load("--device", "cuda:1")
    options = settings.engine_options
    assert (options.device, options.device_asked_for, options.cuda_visible_devices) == ("cuda", "cuda:1", "1")
    assert settings.own_gpu.visible == "1", "of the readings"
    assert load("--device", "1") == settings


def test_a_gpu_by_its_uuid() -> None:
    uuid = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    settings = load("--device", uuid)
    assert settings.own_gpu == OwnGpu("cuda", uuid)
    assert settings.worker_id.endswith(uuid)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (None, 64 * 1024 * 1024)),
        (["--memory-plan", "auto", "--prompt-cache-bytes-max", "0"], (None, 0)),
        (["--memory-plan", "4bit-t5-offload"], (MemoryPlan.T5_OFFLOADED, 64 * 1024 * 1024)),
        (["--memory-plan", "bf16"], (MemoryPlan.BF16, 64 * 1024 * 1024)),
    ],
)
def test_the_memory_plan_and_the_prompt_cache(
    arguments: list[str], expected: tuple[MemoryPlan | None, int]
) -> None:
    options = load(*arguments).engine_options
    assert (options.memory_plan, options.prompt_cache_bytes_max) == expected


def test_the_prompt_can_be_kept_out_of_the_receipt() -> None:
    told = load("--worker-id", "w1").engine_options
    assert (told.worker_id, told.receipt_prompt) == ("w1", True)
    assert not load("--no-receipt-prompt").engine_options.receipt_prompt


def test_the_bounds_of_a_session() -> None:
    limits = load(
        *("--engine-failures-max", "3", "--quarantine-s", "0", "--kept-age-max-s", "20"),
        *("--held-bytes-max", "2097152", "--held-age-max-s", "9", "--engine-backoff-max-s", "8"),
    ).session_limits
    assert limits == SessionLimits(
        engine_failures_max=3,
        quarantine_s=0,
        kept_age_max_s=20,
        held_bytes_max=2 * 1024 * 1024,
        held_age_max_s=9,
        backoff_max_s=8,
    )


def test_a_model_folder_that_is_named_must_hold_a_model(tmp_path: Path) -> None:
    settings = load("--model-dir", str(tmp_path / "none"))
    with pytest.raises(ModelUnusable, match="none: no such folder"):
        settings.engine_choice()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engine", "flx"], ["--engine (FLUX_WORKER_ENGINE): 'flx'", "'embedded'"]),
        (["--device", "cuda:x"], ["--device", "'cuda:x'", "cuda:N"]),
        (["--memory-plan", "8bit"], ["--memory-plan", "'8bit'", "auto", "'4bit-t5-offload'"]),
        (["--prompt-cache-bytes-max", "-1"], ["--prompt-cache-bytes-max", "greater than or equal to 0"]),
        (["--threads", "-1"], ["--threads", "greater than or equal to 0"]),
        (["--worker-id", "a b"], ["--worker-id", "'a b'", "characters"]),
        (["--broker-endpoints", "tcp://10.0.0.1:5561"], ["--broker-endpoints", "this host"]),
        (["--step-limit-s", "0"], ["--step-limit-s", "greater than 0"]),
        (["--held-bytes-max", "5"], ["--held-bytes-max"]),
        (["--engine-backoff-s", "9", "--engine-backoff-max-s", "3"], ["engine_backoff_max_s"]),
        (["--engine-failures-max", "0"], ["--engine-failures-max", "greater than or equal to 1"]),
        (["--quarantine-s", "-1"], ["--quarantine-s", "greater than or equal to 0"]),
        (["--kept-age-max-s", "-1"], ["--kept-age-max-s", "greater than or equal to 0"]),
        (["--fake-step-s", "nan"], ["--fake-step-s"]),
    ],
)
def test_a_bad_value_is_named(
    arguments: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(*arguments)
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    complaint = capsys.readouterr().err
    for part in told:
        assert part in complaint
