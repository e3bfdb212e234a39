"""What a component says that cannot start, and its exit status."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes.stack import LIMIT_S

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START


def run(folder: Path, package: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
    """The exit status, and the lines on stderr."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_") and k != "API_KEYS"}
    ended = subprocess.run(
        [sys.executable, "-m", package, *arguments],
        cwd=folder,
        check=False,
        env={**inherited, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=LIMIT_S,
        text=True,
    )
    return ended.returncode, ended.stderr.splitlines()


@pytest.mark.parametrize(
    ("package", "arguments", "named"),
    [
        ("broker", ("--workers-endpoint", "tcp://0.0.0.0:5561"), ("FLUX_BROKER_WORKERS_ENDPOINT", "0.0.0.0")),
        ("broker", ("--queue-limit", "-1"), ("FLUX_BROKER_QUEUE_LIMIT", "-1")),
        ("gpu_worker", ("--broker-endpoints", "tcp://10.1.2.3:5561"), ("--broker-endpoints", "10.1.2.3")),
        ("gpu_worker", ("--engine", "flux", "--model-dir", "no-such-folder"), ("no-such-folder",)),
        ("gpu_worker", ("--engine", "magic"), ("--engine", "magic", "embedded")),
        ("frontend", (), ("API_KEYS", "missing")),
    ],
)
def test_a_bad_setting_is_named_in_one_line(
    tmp_path: Path, package: str, arguments: tuple[str, ...], named: tuple[str, ...]
) -> None:
    status, lines = run(tmp_path, package, *arguments)
    assert status == EXIT_BAD_CONFIGURATION, lines
    assert lines[0].startswith(f"{package}: ")
    for text in named:
        assert text in lines[0]
    assert lines[1:] in ([], [f"{package}: for all settings: --help"])


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("option", ["--frontends-endpoint", "--workers-endpoint"])
def test_a_taken_port_of_the_broker_is_named(tmp_path: Path, taken_port: int, option: str) -> None:
    endpoint = f"tcp://127.0.0.1:{taken_port}"
    free = {"--frontends-endpoint", "--workers-endpoint"} - {option}
    free_endpoint = f"ipc://{tmp_path}/free"
    status, lines = run(tmp_path, "broker", option, endpoint, *free, free_endpoint)
    assert status == EXIT_CANNOT_START, lines
    setting = option[2:].replace("-", "_")
    assert lines == [f"broker: {setting}: cannot listen on {endpoint}: Address already in use"]
