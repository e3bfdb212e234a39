"""Hosts as network namespaces on one switch, and what can go wrong between them.

The switch is a bridge in a namespace of its own. Frames are cut, lost and slowed down there, so that the
hosts see what they would see of a broken network: silence, and no error. Needs root, `ip`, `tc` and `nft`.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

import psutil
import pytest
from processes.stack import until

PREFIX: Final = "fluxhosts-"
_CLONE_NEWNET: Final = 0x40000000
"""From <sched.h>."""
_FORWARD: Final = "bridge faults forward"

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Network:
    """The hosts, each with a cable to the switch. At its end no namespace and no process in one is left."""

    def __init__(self, hosts: Sequence[str], prefix: str = PREFIX) -> None:
        """Networks with different prefixes may be there at the same time."""
        self.hosts = tuple(hosts)
        self._prefix = prefix
        self._switch = f"{prefix}switch"
        self._lock: int | None = None

    def __enter__(self) -> Self:
        self._lock = _lock_this_machine(self._prefix)
        _remove_all(self._prefix)  # what a killed run has left
        try:
            self._build()
        except BaseException:
            _remove_all(self._prefix)
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        _remove_all(self._prefix)
        assert self._lock is not None
        os.close(self._lock)

    def _build(self) -> None:
        _run("ip", "netns", "add", self._switch)
        _run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "br0", "up")
        self._nft("add table bridge faults")
        self._nft(f"add chain {_FORWARD} {{ type filter hook forward priority 0; }}")
        for host in self.hosts:
            self._connect(host)

    def _connect(self, host: str) -> None:
        name = self._namespace(host)
        _run("ip", "netns", "add", name)
        _run(
            *("ip", "link", "add", _port(host), "netns", self._switch, "type", "veth"),
            *("peer", "name", "eth0", "netns", name),
        )
        _run("ip", "-n", self._switch, "link", "set", _port(host), "master", "br0", "up")
        _run("ip", "-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", device, "up")

    def _namespace(self, host: str) -> str:
        return f"{self._prefix}{host}"

    def address(self, host: str) -> str:
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def command_on(self, host: str) -> tuple[str, ...]:
        """What stands before a command that is to run on this host, which also has its name."""
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host)
        return ("ip", "netns", "exec", self._namespace(host), *named)

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """This thread is on that host in here; so are the sockets and threads that it makes."""
        with Path("/proc/thread-self/ns/net").open() as before:
            with Path("/run/netns", self._namespace(host)).open() as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def dropped(self) -> int:
        """Frames that `cut` and `lose` have taken since they were last healed."""
        return _dropped(self._rules())

    def _rules(self) -> str:
        return self._nft(f"list chain {_FORWARD}")

    def _nft(self, command: str) -> str:
        """Echoes what it adds, with handles."""
        return _run("ip", "netns", "exec", self._switch, "nft", "--echo", "--handle", command)

    # --- Faults ----------------------------------------------------------------------------------

    def unplug(self, host: str) -> None:
        _run("ip", "-n", self._switch, "link", "set", _port(host), "down")

    def plug_in(self, host: str) -> None:
        """The kernel may take a second until it uses a cable again; a host that boots waits for that too."""
        _run("ip", "-n", self._switch, "link", "set", _port(host), "up")
        ends = ((self._namespace(host), "eth0"), (self._switch, _port(host)))
        until(f"the cable of {host} is used", lambda: all(_is_up(*end) for end in ends))

    def cut(self, source: str, target: str) -> int:
        """Nothing that `source` sends arrives at `target`; the other way is another cut. For `mend`."""
        return self._drop(f'iifname "{_port(source)}" oifname "{_port(target)}"')

    def lose(self, host: str, percent: int) -> None:
        """So much of what this host sends, and of what is sent to it, is lost, at random."""
        for side in ("iifname", "oifname"):
            self._drop(f'{side} "{_port(host)}" numgen random mod 100 < {percent}')

    def isolate(self, host: str) -> tuple[int, int]:
        """Nothing reaches this host or leaves it: two cuts."""
        return self._drop(f'iifname "{_port(host)}"'), self._drop(f'oifname "{_port(host)}"')

    def _drop(self, which: str) -> int:
        said = self._nft(f"add rule {_FORWARD} {which} counter drop")
        return int(said.rpartition("# handle ")[2].split()[0])

    def mend(self, cut: int) -> int:
        """Take back one cut; how many frames it has dropped."""
        (rule,) = (rule for rule in self._rules().splitlines() if rule.endswith(f"# handle {cut}"))
        self._nft(f"delete rule {_FORWARD} handle {cut}")
        return _dropped(rule)

    def limit(self, host: str, mbit_s: float) -> None:
        """The cable of this host carries no more than so many megabits in a second, each way."""
        for name, device in ((self._namespace(host), "eth0"), (self._switch, _port(host))):
            _run(
                *("tc", "-n", name, "qdisc", "replace", "dev", device, "root", "tbf"),
                *("rate", f"{round(mbit_s * 1000)}kbit", "burst", "16kb", "latency", "400ms"),
            )

    def heal(self) -> None:
        """Everything is as it was at first."""
        self._nft(f"flush chain {_FORWARD}")
        for host in self.hosts:
            self.plug_in(host)
            for name, device in ((self._namespace(host), "eth0"), (self._switch, _port(host))):
                if "tbf" in _run("tc", "-n", name, "qdisc", "show", "dev", device):
                    _run("tc", "-n", name, "qdisc", "delete", "dev", device, "root")


def _is_up(namespace: str, device: str) -> bool:
    (link,) = json.loads(_run("ip", "-json", "-n", namespace, "link", "show", device))
    return link["operstate"] == "UP"


def _port(host: str) -> str:
    """The switch's end of this host's cable. A device's name has 15 bytes at most."""
    return f"to-{host}"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def _dropped(rules: str) -> int:
    return sum(int(count) for count in re.findall(r"counter packets (\d+)", rules))


def _enter(namespace_fd: int) -> None:
    """`os.setns` of Python 3.12; it concerns this thread only."""
    if _libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _lock_this_machine(prefix: str) -> int:
    """Two runs would take each other's namespaces away. The lock ends with its process."""
    lock_file = f"/run/{prefix}lock"
    lock = os.open(lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        pytest.exit(f"another run of these tests holds {lock_file}", returncode=pytest.ExitCode.USAGE_ERROR)
    return lock


def _remove_all(prefix: str) -> None:
    """All namespaces with this prefix, and whatever runs in them."""
    names = [line.split()[0] for line in _run("ip", "netns", "list").splitlines()]
    for name in names:
        if name.startswith(prefix):
            until(f"nothing runs in {name}", lambda name=name: not _killed_in(name))  # type: ignore[misc]
            _run("ip", "netns", "delete", name)


def _killed_in(name: str) -> list[int]:
    """The processes that were found there and killed, zombies left out."""
    found = [int(pid) for pid in _run("ip", "netns", "pids", name).split()]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return [pid for pid in found if psutil.pid_exists(pid)]
