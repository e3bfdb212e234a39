"""Processes that together may use so much of a core, or of memory, and no more (cgroups, version 1 or 2)."""

import contextlib
import os
from pathlib import Path
from typing import Final, Self

from processes.stack import until

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 100_000


class ControlGroup:
    """Removed at the end of its context, by when its processes must have ended or left."""

    def __init__(self, controller: str, name: str) -> None:
        """`controller`: "cpu" or "memory"."""
        self._is_unified = (_ROOT / "cgroup.controllers").exists()
        self._folder = (
            _ROOT if self._is_unified else _ROOT / controller
        ) / f"flux-chaos-{os.getpid()}-{name}"
        self._controller = controller

    def __enter__(self) -> Self:
        if self._is_unified:
            (_ROOT / "cgroup.subtree_control").write_text(f"+{self._controller}")
        self._folder.mkdir()
        return self

    def __exit__(self, *_exception: object) -> None:
        for pid in self._members.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (self._folder.parent / "cgroup.procs").write_text(pid)
        until("the group can be removed", self._is_removed)

    def _is_removed(self) -> bool:
        with contextlib.suppress(OSError):  # A process that has just left may still be counted.
            self._folder.rmdir()
        return not self._folder.exists()

    @property
    def _members(self) -> Path:
        return self._folder / "cgroup.procs"

    @property
    def entrance(self) -> tuple[str, ...]:
        """What stands before a command that is to run in this group from its start on."""
        return ("sh", "-c", f'echo $$ > {self._members} && exec "$@"', "sh")

    def add(self, pid: int) -> None:
        self._members.write_text(str(pid))

    def limit_cpu(self, share: float) -> None:
        """Of one core."""
        quota_us = round(share * _PERIOD_US)
        if self._is_unified:
            (self._folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
        else:
            (self._folder / "cpu.cfs_quota_us").write_text(str(quota_us))

    def limit_memory(self, size_bytes: int) -> None:
        """Whoever needs more is killed by the kernel."""
        name = "memory.max" if self._is_unified else "memory.limit_in_bytes"
        (self._folder / name).write_text(str(size_bytes))

    @property
    def throttled(self) -> int:
        """Periods in which the group wanted more than its share of a core."""
        facts = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(facts["nr_throttled"])
