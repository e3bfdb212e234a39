"""Key files as settings: which belong together, and what they allow."""

import pytest

from broker.settings import BrokerSettings
from frontend.settings import FrontendSettings
from gpu_worker.settings import WorkerSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION

PEERS = [(BrokerSettings, "authorized-keys-file")] + [
    (each, "known-brokers-file") for each in (WorkerSettings, FrontendSettings)
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    variables = {"API_KEYS": "key", "HOME": "/"}
    monkeypatch.setattr("os.environ", variables)


@pytest.mark.parametrize(("settings", "lists"), PEERS)
def test_keys_and_lists_are_of_no_use_without_each_other(capsys, settings, lists):
    for given, missing in (("curve-key-file", lists), (lists, "curve-key-file")):
        with pytest.raises(SystemExit) as ended:
            load_settings(settings, [f"--{given}=/x"], "example")
        assert ended.value.code == EXIT_BAD_CONFIGURATION
        line = capsys.readouterr().err.splitlines()[0]
        assert line == f"example: {given} is of no use without {missing}".replace("-", "_")


@pytest.mark.parametrize(("settings", "lists"), PEERS)
def test_with_keys_an_endpoint_may_leave_this_host(settings, lists):
    names = ["frontends-endpoint", "workers-endpoint"] if settings is BrokerSettings else ["broker-endpoints"]
    endpoint = "tcp://10.0.0.1:5560"
    arguments = [f"--{name}={endpoint}" for name in names]
    loaded = load_settings(settings, [*arguments, "--curve-key-file=/x", f"--{lists}=/y"], "example")
    assert endpoint in str(loaded)
