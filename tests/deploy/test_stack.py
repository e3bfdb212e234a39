"""The plan of the processes: what each is told by its environment."""

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
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


KILLED_LAUNCHER = """
import os, signal, socket
from deploy.stack import socket_folder
with socket_folder() as folder:
    print(folder, flush=True)
    for name in ("frontends", "workers"):
        socket.socket(socket.AF_UNIX).bind(str(folder / name))
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(name="left")
def _left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a launcher that was killed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-c", KILLED_LAUNCHER]
    killed = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    left = Path(killed.stdout.strip())
    assert left.parent == tmp_path
    assert (left / "frontends").is_socket()
    return left


def test_what_a_killed_launcher_left_is_removed(left: Path) -> None:
    with socket_folder():
        assert not left.exists()


def contents(folder: Path) -> dict[str, int]:
    return {each.name: each.lstat().st_mode for each in folder.iterdir()}


@pytest.mark.parametrize("spare", ["precious.safetensors", "precious/of/mine", ".precious"])
def test_a_launchers_folder_in_which_anything_else_lies_stays(left: Path, spare: str) -> None:
    (left / spare).parent.mkdir(parents=True, exist_ok=True)
    (left / spare).write_text("precious")
    before = contents(left)
    with socket_folder():
        assert contents(left) == before
    assert (left / spare).read_text() == "precious"


def test_what_is_no_socket_is_not_taken_for_one(left: Path) -> None:
    (left / "workers").unlink()
    (left / "workers").write_text("precious")
    before = contents(left)
    with socket_folder():
        assert contents(left) == before


@pytest.mark.parametrize("name", ["flux-dev-weights", "flux-12345678.old", "flux-ABCDEFGH", "flux-1234567"])
def test_a_folder_whose_name_was_not_drawn_stays(left: Path, name: str) -> None:
    before = contents(left)
    other = left.rename(left.with_name(name))
    with socket_folder():
        assert contents(other) == before


def test_a_folder_with_a_file_named_launcher_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "flux-workshop"
    other.mkdir()
    (other / "launcher").touch()
    with socket_folder():
        assert (other / "launcher").exists()


def test_what_another_user_left_stays(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(left)
    another = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    with socket_folder():
        assert contents(left) == before


def test_a_link_to_such_a_folder_stays_and_is_not_followed(left: Path) -> None:
    before = contents(left)
    other = left.rename(left.with_name("elsewhere"))
    left.symlink_to(other)
    with socket_folder():
        assert left.is_symlink()
        assert contents(other) == before


def test_folders_of_living_launchers_and_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    of_another = tmp_path / "flux-12345678"
    of_another.mkdir()
    with socket.socket(socket.AF_UNIX) as of_a_broker:
        of_a_broker.bind(str(of_another / "frontends"))
    with socket_folder() as living, socket_folder() as second:
        assert living.exists()
        assert second != living
    assert of_another.exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with socket_folder() as unlocked:
            patch.undo()
            with socket_folder():
                assert unlocked.exists()
    assert not unlocked.exists()


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
