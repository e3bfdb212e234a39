"""`docker run` of the image with everything, as the README has it, on a CPU."""

import json
import os
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from containers.client import KEY, PICTURE, Call, draw
from containers.engine import HARDENED, Container, field, is_alive, until

DRAIN_LIMIT_S = 60
"""What docs/containers.md says for --stop-timeout."""
FAKE = ("--env", "FLUX_WORKER_ENGINE=fake", "--env", "FLUX_WORKER_FAKE_STEP_S=0.3")


@pytest.fixture
def serve(start):
    """Starts it with these options; where its ports are is in `grpc_of` and `http_of`."""

    def begin(*options: str, full: bool = False) -> Container:
        ports = ("--publish", "127.0.0.1::50051", "--publish", "127.0.0.1::8000")
        return start(
            "server", "server", *HARDENED, *ports, "--env", f"API_KEYS={KEY},client2", *options, full=full
        )

    return begin


def grpc_of(container: Container) -> str:
    return _published(container, 50051)


def http_of(container: Container) -> str:
    return f"http://{_published(container, 8000)}"


def _published(container: Container, port: int) -> str:
    ports = json.loads(container.inspect("{{json .NetworkSettings.Ports}}"))
    (binding,) = ports[f"{port}/tcp"]
    return f"127.0.0.1:{binding['HostPort']}"


def status_of(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_it_draws_for_whoever_is_outside_and_may_do_nothing_else(serve):
    """With the embedded model, as there is no other: real torch, no GPU."""
    container = serve(full=True)
    container.until_healthy()
    assert container.is_healthy(), "the image's own check"
    assert draw(grpc_of(container)) == PICTURE
    assert draw(grpc_of(container), key="client2") == PICTURE
    assert draw(grpc_of(container), key="stranger").startswith("UNAUTHENTICATED")
    assert status_of(f"{http_of(container)}/healthz") == 200
    assert status_of(f"{http_of(container)}/metrics") == 200

    processes = container.processes()
    assert len(processes) >= 6, "launcher, broker, frontend, worker, its forkserver and its engine process"
    for status in processes.values():
        assert field(status, "Uid").split() == ["10001"] * 4
        assert field(status, "CapEff") == "0" * 16
        assert field(status, "NoNewPrivs") == "1"
    written = container.run_inside(
        "sh", "-c", "touch /var/lib/flux-server/x /opt/flux-server/x /run/flux-server/x"
    )
    assert written.stderr.count("Read-only file system") == 3


def test_a_stop_lets_what_is_drawn_arrive_and_leaves_no_process(serve):
    container = serve(*FAKE)
    container.until_healthy()
    processes = container.processes()
    call = Call(grpc_of(container), steps=20)
    until("the job runs", lambda: "job started" in container.logs)
    assert call.is_open
    container.stop(DRAIN_LIMIT_S)
    assert call.end() == PICTURE
    assert container.exit_status == 0, container.logs[-4000:]
    assert not [pid for pid, status in processes.items() if is_alive(pid, status)]


def test_it_is_not_healthy_while_nothing_draws_and_is_again(serve):
    """A killed worker is replaced; what its death leaves behind does not stay as zombies."""
    container = serve("--init", *FAKE, "--env", "FLUX_WORKER_FAKE_LOAD_S=3")
    container.until_healthy()
    worker = next(pid for pid in container.processes() if b"gpu_worker" in cmdline(pid))
    os.kill(worker, signal.SIGKILL)
    until(
        "it is unhealthy", lambda: "ready" in container.check_health() or "worker" in container.check_health()
    )
    assert container.check_health("alive") == ""
    container.until_healthy()
    assert draw(grpc_of(container)) == PICTURE
    zombies = [s for s in container.processes().values() if field(s, "State").startswith("Z")]
    assert not zombies, zombies


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
