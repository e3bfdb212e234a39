"""What each process of the service has of memory and descriptors, from /proc."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from processes.stack import Component

_KB_A_MB: Final = 1000 / 1.024
"""/proc says kB and means 1024 bytes; a megabyte is a million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at_s: float
    jobs: int
    """That have ended so far, in whatever way."""
    process: str
    pid: int
    pss_mb: float
    """Its own memory, and its share of what it shares."""
    uss_mb: float
    """Its own alone: what a leak is in, however many siblings a forked process has."""
    descriptors: int


def samples(components: Iterable[Component], at_s: float, jobs: int) -> Iterator[Sample]:
    """Of all their processes now; one that ends meanwhile is left out."""
    for component in components:
        if component.is_running:
            for name, pid in _processes(component):
                try:
                    pss_mb, uss_mb = _memory_mb(pid)
                    descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
                except (FileNotFoundError, ProcessLookupError):
                    continue
                yield Sample(
                    at_s=round(at_s, 1),
                    jobs=jobs,
                    process=name,
                    pid=pid,
                    pss_mb=round(pss_mb, 3),
                    uss_mb=round(uss_mb, 3),
                    descriptors=descriptors,
                )


def _processes(component: Component) -> Iterator[tuple[str, int]]:
    """The component, its forkserver, and its engine process, which is the forkserver's child."""
    yield component.name, component.pid
    try:
        for child in psutil.Process(component.pid).children():
            if "multiprocessing.forkserver" in child.cmdline()[-1]:
                yield f"{component.name} forkserver", child.pid
                yield from ((f"{component.name} engine", engine.pid) for engine in child.children())
    except (psutil.NoSuchProcess, IndexError):
        return


def _memory_mb(pid: int) -> tuple[float, float]:
    """PSS and USS."""
    kb: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        kb[name] = int(value.split()[0])
    return kb["Pss"] / _KB_A_MB, (kb["Private_Clean"] + kb["Private_Dirty"]) / _KB_A_MB
