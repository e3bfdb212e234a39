"""Hosts as network namespaces on one switch, and what can go wrong between them.

The switch is a bridge in a namespace of its own. Frames are cut, lost and slowed down there, so that the
hosts see what they would see of a broken network: silence, and no error. Needs root, `ip`, `tc` and `nft`.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil
import pytest
from processes.stack import until

PREFIX: Final = "fluxhosts-"
SWITCH: Final = f"{PREFIX}switch"
LOCK_FILE: Final = Path("/run/fluxhosts.lock")
_CLONE_NEWNET: Final = 0x40000000
"""From <sched.h>."""
_FORWARD: Final = "bridge faults forward"

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Network:
    """The hosts, each with a cable to the switch. At its end no namespace and no process in one is left."""

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._lock = _lock_this_machine()
        _remove_all()  # what a killed run has left
        try:
            self._build()
        except BaseException:
            _remove_all()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        _remove_all()
        assert self._lock is not None
        os.close(self._lock)

    def _build(self) -> None:
        _run("ip", "netns", "add", SWITCH)
        _run("ip", "-n", SWITCH, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", SWITCH, "link", "set", "br0", "up")
        _nft("add table bridge faults")
        _nft(f"add chain {_FORWARD} {{ type filter hook forward priority 0; }}")
        for host in self.hosts:
            self._connect(host)

    def _connect(self, host: str) -> None:
        name = namespace(host)
        _run("ip", "netns", "add", name)
        _run(
            *("ip", "link", "add", _port(host), "netns", SWITCH, "type", "veth"),
            *("peer", "name", "eth0", "netns", name),
        )
        _run("ip", "-n", SWITCH, "link", "set", _port(host), "master", "br0", "up")
        _run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", device, "up")

    def address(self, host: str) -> str:
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def command_on(self, host: str) -> tuple[str, ...]:
        """What stands before a command that is to run on this host, which also has its name."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host)
        return ("ip", "netns", "exec", namespace(host), *named)

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is on that host in here; so are the sockets and threads that it makes."""
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path("/run/netns", namespace(host)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def dropped(self) -> int:
        """Frames that `cut` and `lose` have taken since they were last healed."""
        rules = _run("ip", "netns", "exec", SWITCH, "nft", "list", "chain", *_FORWARD.split())
        return sum(int(count) for count in re.findall(r"counter packets (\d+)", rules))

    # --- Faults ----------------------------------------------------------------------------------

    def unplug(self, host: str) -> None:
        _run("ip", "-n", SWITCH, "link", "set", _port(host), "down")

    def plug_in(self, host: str) -> None:
        _run("ip", "-n", SWITCH, "link", "set", _port(host), "up")

    def cut(self, source: str, target: str) -> None:
        """Nothing that `source` sends arrives at `target`; the other way is another cut."""
        _nft(f'add rule {_FORWARD} iifname "{_port(source)}" oifname "{_port(target)}" counter drop')

    def lose(self, host: str, percent: int) -> None:
        """So much of what this host sends, and of what is sent to it, is lost, at random."""
        for side in ("iifname", "oifname"):
            _nft(f'add rule {_FORWARD} {side} "{_port(host)}" numgen random mod 100 < {percent} counter drop')

    def limit(self, host: str, mbit_s: float) -> None:
        """The cable of this host carries no more than so many megabits in a second, each way."""
        for name, device in ((namespace(host), "eth0"), (SWITCH, _port(host))):
            _run(
                *("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf"),
                *("rate", f"{round(mbit_s * 1000)}kbit", "burst", "16kb", "latency", "400ms"),
            )

    def heal(self) -> None:
        """Everything is as it was at first."""
        _nft(f"flush chain {_FORWARD}")
        for host in self.hosts:
            self.plug_in(host)
            for name, device in ((namespace(host), "eth0"), (SWITCH, _port(host))):
                if "tbf" in _run("tc", "-n", name, "qdisc", "show", "dev", device):
                    _run("tc", "-n", name, "qdisc", "delete", "dev", device, "root")


def namespace(host: str) -> str:
    return f"{PREFIX}{host}"


def _port(host: str) -> str:
    """The switch's end of this host's cable. A device's name has 15 bytes at most."""
    return f"to-{host}"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def _nft(rule: str) -> None:
    _run("ip", "netns", "exec", SWITCH, "nft", rule)


def _enter(namespace_fd: int) -> None:
    """`os.setns` of Python 3.12; it concerns this thread only."""
    if _libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _lock_this_machine() -> int:
    """Two runs would take each other's namespaces away. The lock ends with its process."""
    lock = os.open(LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        pytest.exit(f"another run of these tests holds {LOCK_FILE}", returncode=pytest.ExitCode.USAGE_ERROR)
    return lock


def _remove_all() -> None:
    """All namespaces with our prefix, and whatever runs in them."""
    names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]
    for name in names:
        if name.startswith(PREFIX):
            until(f"nothing runs in {name}", lambda name=name: not _killed_in(name))  # type: ignore[misc]
            _run("ip", "netns", "delete", name)


def _killed_in(name: str) -> list[int]:
    """The processes that were found there and killed, zombies left out."""
    found = [int(pid) for pid in _run("ip", "netns", "pids", name).split()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [pid for pid in found if psutil.pid_exists(pid)]
