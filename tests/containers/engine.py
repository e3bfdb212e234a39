"""buildah and podman, with images, containers and settings of their own. Needs root."""

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import pytest
import waiting

LIMIT_S: Final = 300.0
"""For what must happen, however slow this machine is."""
POLL_S: Final = 0.2
BUILD_LIMIT_S: Final = 1500.0
BRIDGE: Final = Path("/sys/class/net/podman0")
NEEDED: Final = {
    "ip": "iproute2",
    "buildah": "buildah",
    "podman": "podman",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "iptables": "iptables",
    "catatonit": "catatonit",
}
HARDENED: Final = (
    "--read-only",
    "--read-only-tmpfs=false",  # Docker has no others than those that it is told.
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "all",
    "--security-opt",
    "no-new-privileges",
)

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    return waiting.until(what, look, limit_s, POLL_S)


def require_means() -> None:
    """Fails where no image can be built: a skipped test would look like a passed one."""
    if os.geteuid() != 0:
        pytest.fail("these tests build and run containers: run them as root")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(f"these tests need: apt install {' '.join(missing)} netavark")


class Engine:
    """Apart from what the host's own buildah and podman have."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        storage, settings = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run"\n'
        )
        # Podman asks for more than a container that runs these tests may have itself.
        limits = [f"{name}={limit}:{limit}" for name, limit in (("nofile", _open_files()), ("nproc", 30_000))]
        settings.write_text(
            f"[containers]\ndefault_ulimits = {json.dumps(limits)}\n"
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(storage),
            "CONTAINERS_CONF": str(settings),
        }

    def run(self, *command: str, limit_s: float = LIMIT_S, check: bool = True) -> str:
        """What it wrote on stdout."""
        done = self.done(*command, limit_s=limit_s)
        assert not check or done.returncode == 0, (
            f"{' '.join(command)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
        return done.stdout.strip()

    def done(self, *command: str, limit_s: float = LIMIT_S) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def build(
        self,
        source: Path,
        target: str,
        *,
        wheels: Path,
        arguments: Mapping[str, str] | None = None,
        tag: str = "latest",
    ) -> str:
        """The image of this target, from wheels that were collected before. Its name."""
        name = f"localhost/flux-server/{target}:{tag}"
        given = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels", **(arguments or {})}
        self.run(
            *("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never", "--layers"),
            *("--format", "docker", "--volume", f"{wheels}:/wheels:ro"),
            *(word for key, value in given.items() for word in ("--build-arg", f"{key}={value}")),
            *("--target", target, "--tag", name, "--file", f"{source}/deploy/docker/Dockerfile", str(source)),
            limit_s=BUILD_LIMIT_S,
        )
        return name

    def size_mb(self, image: str) -> float:
        return int(self.run("podman", "image", "inspect", "--format", "{{.Size}}", image)) / 1e6

    def start(self, name: str, image: str, *options: str) -> "Container":
        self.run("podman", "run", "--detach", "--name", name, *options, image)
        self._keep_bridge_address()
        return Container(self, name)

    def _keep_bridge_address(self) -> None:
        """Of itself it is the lowest of its ports (netavark 1.4): one that goes cuts off the others."""
        if BRIDGE.exists():
            self.run("ip", "link", "set", BRIDGE.name, "address", (BRIDGE / "address").read_text().strip())

    def once(self, image: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """Another program than the image's own, in a fresh container of it."""
        return self.done(
            *("podman", "run", "--rm", "--network", "none", *HARDENED, "--entrypoint", command[0], image),
            *command[1:],
        )


class Container:
    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name

    def inspect(self, form: str) -> str:
        return self._engine.run("podman", "inspect", "--format", form, self.name)

    @property
    def address(self) -> str:
        """Of its first network."""
        return self.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}").split()[0]

    @property
    def is_running(self) -> bool:
        return self.inspect("{{.State.Running}}") == "true"

    @property
    def exit_status(self) -> int:
        return int(self.inspect("{{.State.ExitCode}}"))

    @property
    def logs(self) -> str:
        done = self._engine.done("podman", "logs", self.name)
        return done.stdout + done.stderr

    def processes(self) -> dict[int, str]:
        """Their pids on the host, and what `/proc` tells of their state."""
        first = int(self.inspect("{{.State.Pid}}"))
        return _descendants(first)

    def run_inside(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return self._engine.done("podman", "exec", self.name, *command)

    def check_health(self, *arguments: str) -> str:
        """Empty if it does well, otherwise what is wrong."""
        done = self.run_inside("flux-health", *arguments)
        return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"

    def is_healthy(self) -> bool:
        """By the check that the image itself names."""
        return self._engine.done("podman", "healthcheck", "run", self.name).returncode == 0

    def until_healthy(self) -> None:
        def look() -> bool:
            assert self.is_running, self.logs[-4000:]
            return not self.check_health()

        until(f"{self.name} is healthy", look)

    def stop(self, limit_s: int) -> None:
        """SIGTERM, and SIGKILL when that was in vain for so long."""
        self._engine.run("podman", "stop", "--time", str(limit_s), self.name, limit_s=limit_s + LIMIT_S)

    def remove(self) -> None:
        self._engine.done("podman", "rm", "--force", "--time", "0", self.name)


def field(status: str, name: str) -> str:
    """Of `/proc/PID/status`."""
    return next(line.split(":", 1)[1].strip() for line in status.splitlines() if line.startswith(f"{name}:"))


def is_alive(pid: int, status: str) -> bool:
    """Whether the number is still that process's."""
    try:
        return field(Path(f"/proc/{pid}/status").read_text(), "NSpid") == field(status, "NSpid")
    except (OSError, StopIteration):
        return False


def _descendants(pid: int) -> dict[int, str]:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return {}
    found = {pid: status}
    for child in children:
        found |= _descendants(int(child))
    return found


def _open_files() -> int:
    return min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 20_000)
