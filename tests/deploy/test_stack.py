"""The plan of the processes: what each is told by its environment."""

import stat
import tempfile
from pathlib import Path

import pytest

from deploy.invitation import sample_command
from deploy.ports import free_ports, reachable
from deploy.settings import FrontendEnvironment, LauncherSettings
from deploy.stack import Stack, build_stack, socket_folder
from proto.configuration import load_settings
from proto.endpoints import IPC_PATH_MAX_BYTES
from proto.exit_status import EXIT_BAD_CONFIGURATION


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEYS", "FLUX_FRONTEND_GRPC_PORT", "FLUX_FRONTEND_HTTP_PORT"):
        monkeypatch.delenv(name, raising=False)


def planned(*arguments: str) -> Stack:
    settings = load_settings(LauncherSettings, arguments, "flux-server")
    return build_stack(settings, load_settings(FrontendEnvironment, [], "flux-server"), Path("/run/flux"))


def test_without_configuration_the_usual_ports_and_a_key_of_its_own() -> None:
    first, second = planned(), planned()
    assert (first.grpc_address, first.metrics_url) == ("localhost:50051", "http://localhost:8000/metrics")
    assert first.api_key_was_generated
    assert first.frontend.environment["API_KEYS"] == first.api_keys[0] != second.api_keys[0]


def test_all_meet_at_the_brokers_sockets() -> None:
    stack = planned("--workers", "2")
    assert [worker.name for worker in stack.workers] == ["worker-1", "worker-2"]
    assert {w.environment["FLUX_WORKER_WORKER_ID"] for w in stack.workers} == {"worker-1", "worker-2"}
    for_workers = stack.broker.environment["FLUX_BROKER_WORKERS_ENDPOINT"]
    for_frontends = stack.broker.environment["FLUX_BROKER_FRONTENDS_ENDPOINT"]
    assert for_workers.startswith("ipc:///run/flux/")
    assert for_workers != for_frontends
    assert all(w.environment["FLUX_WORKER_BROKER_ENDPOINTS"] == for_workers for w in stack.workers)
    assert stack.frontend.environment["FLUX_FRONTEND_BROKER_ENDPOINTS"] == for_frontends


def test_given_keys_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "client1, client2")
    stack = planned()
    assert stack.api_keys == ("client1", "client2")
    assert not stack.api_key_was_generated
    assert stack.frontend.environment["API_KEYS"] == "client1, client2"
    assert all("API_KEYS" not in each.environment for each in (stack.broker, *stack.workers))


def test_empty_keys_are_left_to_the_frontend_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "")
    stack = planned()
    assert stack.frontend.environment["API_KEYS"] == ""
    assert not stack.api_key_was_generated


def test_the_command_line_goes_before_the_frontends_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_FRONTEND_GRPC_PORT", "6000")
    monkeypatch.setenv("FLUX_FRONTEND_HTTP_PORT", "6001")
    stack = planned("--grpc-port", "7000")
    assert (stack.grpc_address, stack.metrics_url) == ("localhost:7000", "http://localhost:6001/metrics")
    assert stack.frontend.environment["FLUX_FRONTEND_GRPC_PORT"] == "7000"


def test_what_is_encrypted_is_told_and_asked_for_accordingly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUX_FRONTEND_HTTP_TLS", "true")
    monkeypatch.setenv("FLUX_FRONTEND_TLS_CERTIFICATE_FILE", "server.pem")
    stack = planned()
    assert stack.metrics_url == "https://localhost:8000/metrics"
    assert sample_command(stack).endswith(f"localhost:50051 {stack.api_keys[0]} AUTHORITY.pem")


def test_port_0_becomes_a_free_one() -> None:
    stack = planned("--grpc-port", "0", "--http-port", "0")
    assert stack.http_port > 0
    assert stack.frontend.environment["FLUX_FRONTEND_GRPC_PORT"] != "0"


def test_free_ports_are_drawn_together_as_two_draws_may_be_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.stack.free_ports", lambda count: list(range(40_001, 40_001 + count)))
    stack = planned("--grpc-port", "0", "--http-port", "0")
    assert (stack.grpc_address, stack.http_port) == ("localhost:40001", 40_002)
    stack = planned("--grpc-port", "7000", "--http-port", "0")
    assert (stack.grpc_address, stack.http_port) == ("localhost:7000", 40_001)


def test_what_was_not_said_is_left_to_the_components() -> None:
    stack = planned("--time-scale", "0.2", "--engine", "fake")
    (worker,) = stack.workers
    assert worker.environment["FLUX_WORKER_ENGINE"] == "fake"
    assert "FLUX_WORKER_MODEL_DIR" not in worker.environment
    assert "FLUX_WORKER_LOG_LEVEL" not in worker.environment
    assert {
        stack.broker.environment["FLUX_BROKER_TIME_SCALE"],
        worker.environment["FLUX_WORKER_TIME_SCALE"],
    } == {"0.2"}


def test_prompts_are_logged_by_the_frontend_alone() -> None:
    stack = planned("--log-prompts")
    told = {each.name: "LOG_PROMPTS" in "".join(each.environment) for (each,) in stack.layers}
    assert told == {"broker": False, "worker-1": False, "frontend": True}
    assert stack.frontend.environment["FLUX_FRONTEND_LOG_PROMPTS"] == "True"
    assert "FLUX_FRONTEND_LOG_PROMPTS" not in planned().frontend.environment


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--workers", "0"], "--workers (FLUX_SERVER_WORKERS): '0'"), (["--grpc-port", "x"], "--grpc-port")],
)
def test_a_bad_value_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        planned(*arguments)
    assert ended.value.code == EXIT_BAD_CONFIGURATION
    assert named in capsys.readouterr().err


def test_the_socket_folder_is_private_and_removed() -> None:
    with socket_folder() as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IRWXU
    assert not folder.exists()


def test_the_socket_folder_has_a_short_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with socket_folder() as folder:
        assert len(f"{folder}/frontends".encode()) <= IPC_PATH_MAX_BYTES


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "localhost:1"),
        ("0.0.0.0", "localhost:1"),
        ("::", "localhost:1"),
        ("::1", "[::1]:1"),
        ("192.0.2.7", "192.0.2.7:1"),
        ("gpu-host", "gpu-host:1"),
    ],
)
def test_a_client_on_this_machine_reaches_it_at(host: str, address: str) -> None:
    assert reachable(host, 1) == address


def test_free_ports_differ() -> None:
    assert len(set(free_ports(10))) == 10


def test_only_the_first_broker_need_not_ask_what_goes_on() -> None:
    broker = planned().broker
    assert broker.first_environment == {"FLUX_BROKER_IS_FIRST": "true"}
    assert broker.started().first_environment == {}
    assert broker.started().environment == broker.environment
    assert broker.environment["FLUX_BROKER_IS_FIRST"] == "false", "whatever the launcher is told"
