"""What each component tells its service manager, as a real process: from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LIMIT_S = 50.0
"""For what must happen, however slow this machine is."""
LOAD_S = 0.5
EARLIEST_READY = {"broker": 0.0, "frontend": 0.0, "gpu_worker": LOAD_S}


class Manager:
    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "notify")
        self.told: dict[str, str] = {}
        """The latest value of each field."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(LIMIT_S)
        self._socket.bind(self.address)

    def until(self, field: str, beginning: str) -> str:
        give_up_at = time.monotonic() + LIMIT_S
        while not self.told.get(field, "-").startswith(beginning):
            assert time.monotonic() < give_up_at, self.told
            lines = self._socket.recv(4096).decode().splitlines()
            self.told |= dict(line.split("=", 1) for line in lines)
        return self.told[field]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="flux-") as name:
        yield Path(name)


@pytest.fixture
def manager(folder: Path) -> Iterator[Manager]:
    end = Manager(folder)
    yield end
    end.close()


@contextmanager
def started(component: str, folder: Path, manager: Manager) -> Iterator[subprocess.Popen[bytes]]:
    settings = {
        "FLUX_BROKER_FRONTENDS_ENDPOINT": f"ipc://{folder}/frontends",
        "FLUX_BROKER_WORKERS_ENDPOINT": f"ipc://{folder}/workers",
        "FLUX_FRONTEND_BROKER_ENDPOINTS": f"ipc://{folder}/frontends",
        "FLUX_FRONTEND_GRPC_PORT": "0",
        "FLUX_FRONTEND_HTTP_PORT": "0",
        "API_KEYS": "key",
        "FLUX_WORKER_BROKER_ENDPOINTS": f"ipc://{folder}/workers",
        "FLUX_WORKER_ENGINE": "fake",
        "FLUX_WORKER_FAKE_LOAD_S": str(LOAD_S),
        "NOTIFY_SOCKET": manager.address,
        "WATCHDOG_USEC": "400000",
    }
    process = subprocess.Popen([sys.executable, "-m", component], cwd=folder, env={**os.environ, **settings})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("component", "status"),
    [
        ("broker", "listening for its peers: 0 workers (0 ready), 0 frontends, 0 running, 0 waiting"),
        ("frontend", "serving: no broker answers, 0 calls open"),
        ("gpu_worker", "ready with fake on cpu; idle"),
    ],
)
def test_it_says_when_it_is_ready_how_it_does_and_that_it_ends(component, status, folder, manager):
    began = time.monotonic()
    with started(component, folder, manager) as process:
        manager.until("READY", "1")
        assert time.monotonic() - began >= EARLIEST_READY[component]
        manager.until("STATUS", status)
        del manager.told["WATCHDOG"]
        manager.until("WATCHDOG", "1")
        process.send_signal(signal.SIGTERM)
        manager.until("STOPPING", "1")
        assert process.wait(LIMIT_S) == 0
