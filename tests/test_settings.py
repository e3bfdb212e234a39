"""Each program takes those settings alone that it uses."""

import pytest

from broker.settings import BrokerSettings
from frontend.settings import FrontendSettings
from gpu_worker.prefetch_settings import PrefetchSettings
from gpu_worker.quantize import QuantizeSettings
from gpu_worker.settings import WorkerSettings
from proto.configuration import ComponentSettings, Settings, load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION

OF_COMPONENTS = sorted(ComponentSettings.model_fields)
WITHOUT = [
    *((BrokerSettings, "FLUX_BROKER_", name) for name in ["log_prompts"]),
    *((WorkerSettings, "FLUX_WORKER_", name) for name in ["log_prompts"]),
    *((PrefetchSettings, "FLUX_PREFETCH_", name) for name in ["log_prompts", *OF_COMPONENTS]),
    *((QuantizeSettings, "FLUX_QUANTIZE_", name) for name in ["log_prompts", *OF_COMPONENTS]),
]


@pytest.mark.parametrize(("program", "prefix", "name"), WITHOUT)
def test_a_setting_that_would_change_nothing_is_none(
    program: type[Settings],
    prefix: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variable = f"{prefix}{name.upper()}"
    monkeypatch.setenv(variable, "true")
    load_settings(program, [], "program")
    assert f"program: {variable} is not a setting, and is ignored\n" in capsys.readouterr().err
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(SystemExit) as ended:
        load_settings(program, [option], "program")
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_the_frontend_writes_prompts_into_its_log_if_it_is_told_to() -> None:
    assert load_settings(FrontendSettings, ["--log-prompts", "--api-keys=k"], "program").log_prompts
