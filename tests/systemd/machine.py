"""A small Debian with a really booted systemd, in a container of its own (systemd-nspawn). Needs root."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import waiting

LIMIT_S: Final = 60.0
"""For what must happen, however slow this machine is."""
POLL_S: Final = 0.1
PACKAGES: Final = "systemd,systemd-sysv,dbus,python3,python3-venv,make,procps,iproute2"
ROOTFS_LIMIT_S: Final = 600.0
NEEDED: Final = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
UNITS: Final = ("flux-broker.service", "flux-frontend.service", "flux-worker@cpu.service")
WORKER_REQUIREMENTS: Final = "REQUIREMENTS_gpu_worker=tests/systemd/worker_without_torch.txt"
"""For make: a worker with the fake engine."""
DRAW: Final = Path(__file__).with_name("draw.py")

EXIT_REBOOT: Final = 133
"""Of systemd-nspawn."""

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], limit_s: float = LIMIT_S) -> T:
    return waiting.until(what, look, limit_s, POLL_S)


def require_means() -> None:
    """Fails where no container can be booted: a skipped test would look like a passed one."""
    if os.geteuid() != 0:
        pytest.fail("these tests boot a container: run them as root")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        pytest.fail(f"these tests need: apt install {' '.join(missing)}")


def root_filesystem(cache: Path) -> Path:
    """A tar of it, made the first time (about a minute; needs a Debian mirror)."""
    archive = cache / "bookworm.tar"
    if not archive.exists():
        unfinished = cache / "unfinished.tar"
        command = ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ROOTFS_LIMIT_S, check=False)
        assert done.returncode == 0, done.stderr
        unfinished.rename(archive)
    return archive


class Call:
    """An image that was asked for; see `draw.py`."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    @property
    def is_open(self) -> bool:
        return self._process.poll() is None

    def outcome(self, limit_s: float = LIMIT_S) -> str:
        """`image`, or the code and text of the refusal."""
        out, error = self._process.communicate(timeout=limit_s)
        assert self._process.returncode == 0, error
        return str(json.loads(out)["outcome"])


class Machine:
    """Its files are kept from one boot to the next."""

    def __init__(self, root: Path, archive: Path, source: Path) -> None:
        self._root = root
        self._source = source
        self._container: subprocess.Popen[bytes] | None = None
        root.mkdir()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(root)], check=True)

    @contextlib.contextmanager
    def booted(self) -> Iterator["Machine"]:
        self._boot()
        try:
            self.until_running()
            yield self
        finally:
            assert self._container is not None
            self._container.terminate()  # Its systemd halts.
            try:
                self._container.wait(LIMIT_S)
            finally:
                self._container.kill()
                self._container.wait()

    def _boot(self) -> None:
        command = ["setpriv", "--pdeathsig=KILL"]  # It is not to outlive a test run that is killed.
        command += ["systemd-nspawn", "--quiet", f"--directory={self._root}", "--boot", "--private-network"]
        command += [f"--bind-ro={self._source}:/mnt", f"--machine=flux-{os.getpid()}"]
        with (self._root.parent / "console").open("ab") as console:
            self._container = subprocess.Popen(
                [*command, "--register=no", "--keep-unit", "--console=pipe"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )

    def reboot(self) -> None:
        """systemd-nspawn leaves the second half to the unit that it usually runs in."""
        assert self._container is not None
        self.run("systemctl", "reboot", check=False)
        assert self._container.wait(LIMIT_S) == EXIT_REBOOT
        self._boot()
        self.until_running()

    @property
    def leader(self) -> int | None:
        """The pid of its systemd, outside; None while there is none."""
        assert self._container is not None
        children = (
            Path(f"/proc/{self._container.pid}/task/{self._container.pid}/children").read_text().split()
        )
        return int(children[0]) if children else None

    def path(self, inside: str) -> Path:
        """A file of the disk, as seen from outside."""
        return self._root / inside.removeprefix("/")

    def until_running(self) -> None:
        def look() -> bool:
            done = self.run("systemctl", "is-system-running", check=False) if self.leader else None
            # Containers lack what some units of the system want.
            return done is not None and done.stdout.strip() in {"running", "degraded"}

        until("systemd is up", look)

    # --- Commands ------------------------------------------------------------------------------

    def command(self, *command: str, namespaces: str = "--all") -> list[str]:
        leader = self.leader
        assert leader is not None, "it is down"
        return ["nsenter", f"--target={leader}", namespaces, "--", *command]

    def run(
        self, *command: str, check: bool = True, limit_s: float = LIMIT_S
    ) -> "subprocess.CompletedProcess[str]":
        """As root, inside."""
        done = subprocess.run(
            self.command(*command),
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def make(self, *arguments: str) -> str:
        """In a copy of the source with its wheels: there is no network."""
        self.run("rm", "-rf", "/root/source")
        self.run("cp", "-a", "/mnt", "/root/source")
        done = self.run("make", "-C", "/root/source", "PYTHON=python3", *arguments, limit_s=4 * LIMIT_S)
        return done.stdout + done.stderr

    def systemctl(self, *arguments: str, limit_s: float = LIMIT_S) -> str:
        return self.run("systemctl", *arguments, limit_s=limit_s).stdout.strip()

    # --- Units ---------------------------------------------------------------------------------

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit)

    def main_pid(self, unit: str) -> int:
        """Inside."""
        return int(self.show(unit, "MainPID"))

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")

    def restarts(self, unit: str) -> int:
        return int(self.show(unit, "NRestarts"))

    def until_active(self, unit: str) -> None:
        until(f"{unit} is active", lambda: self.state(unit) == "active" and self.main_pid(unit) != 0)

    def until_restarted(self, unit: str, pid: int) -> None:
        """Another process than this one is ready."""
        until(
            f"{unit} is started again",
            lambda: self.main_pid(unit) not in {0, pid} and self.state(unit) == "active",
        )

    def until_drawing(self, call: Call, unit: str = UNITS[2]) -> None:
        """The worker is busy with a call of 20 steps."""
        self.until_status(unit, " of 20")
        assert call.is_open

    def until_status(self, unit: str, text: str) -> str:
        def look() -> str | None:
            status = self.show(unit, "StatusText")
            return status if text in status else None

        return until(f"the status of {unit} has {text!r}", look)

    def drop_in(self, unit: str, name: str, *lines: str) -> None:
        """Settings of `[Service]` on top of the unit's; to be heeded at its next start."""
        folder = self.path(f"/etc/systemd/system/{unit}.d")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.conf").write_text("\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")

    def drop_in_example(self, unit: str, example: str, **replaced: str) -> None:
        """One of those that are installed; `replaced` are values of its variables."""
        text = self.path(f"/usr/local/share/doc/flux-server/examples/{example}").read_text()
        for name, value in replaced.items():
            text, count = re.subn(rf"(?m)^(Environment={name})=.*$", rf"\1={value}", text)
            assert count == 1, name
        self.drop_in(unit, "example", *text.replace("[Service]", "").splitlines())

    def remove_drop_ins(self, unit: str) -> bool:
        """False if there were none."""
        folder = self.path(f"/etc/systemd/system/{unit}.d")
        if not folder.exists():
            return False
        shutil.rmtree(folder)
        self.systemctl("daemon-reload")
        return True

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def logs(self) -> str:
        """For the report of a failed test."""
        if self.leader is None:
            return (self._root.parent / "console").read_text(errors="replace")
        done = self.run("journalctl", "--no-pager", "--unit=flux-*", "--lines=150", check=False)
        return "\n".join(line for line in done.stdout.splitlines() if '"Metrics"' not in line)

    def write_api_keys(self, *keys: str) -> None:
        """A client of its own for each."""
        file = self.path("/etc/flux-server/api_keys.toml")
        file.write_text("".join(f'[clients.{key}]\nkeys = ["{key}"]\n' for key in keys))
        self.run("chown", "root:flux-frontend", "/etc/flux-server/api_keys.toml")
        file.chmod(0o640)

    # --- The service ---------------------------------------------------------------------------

    def begin(self, key: str = "client1", **wishes: Any) -> Call:
        """Ask for an image, from inside its network."""
        words = [f"--{name}={value}" for name, value in {"key": key, **wishes}.items()]
        process = subprocess.Popen(
            self.command(sys.executable, str(DRAW), *words, namespaces="--net"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return Call(process)

    def draw(self, key: str = "client1", **wishes: Any) -> str:
        return self.begin(key, **wishes).outcome()

    def until_drawn(self) -> None:
        """The service as a whole works, or works again."""
        until("an image", lambda: self.draw() == "image")
