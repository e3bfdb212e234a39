"""A real broker and the processes that load it; what each of them has used."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from benchmarks.growth.load import slices
from benchmarks.growth.workload import Workload

UNBOUNDED: Final = (
    "import broker.worker_side; broker.worker_side.MAX_WORKERS = 100_000; "
    "from broker.__main__ import main; raise SystemExit(main())"
)
"""A broker that takes more workers than the product does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    wall_s: float
    broker_s: float
    """CPU of its main thread."""
    broker_io_s: float
    """And of its other threads, libzmq's."""
    load_s: list[float]
    """Of each process that plays workers and frontends."""
    rss_mb: float
    seen: list[dict[str, Any]]

    def all_seen(self, name: str) -> list[float]:
        return sorted(value for each in self.seen for value in each[name])

    def counted(self, name: str) -> int:
        return sum(each["counts"].get(name, 0) for each in self.seen)


def measure(workload: Workload, load_processes: int) -> Measured:
    with (
        tempfile.TemporaryDirectory(prefix="flux-growth-") as folder,
        broker(workload, Path(folder)) as process,
    ):
        endpoints = _endpoints(Path(folder))
        loads = [
            _load(workload, endpoints, (workers, frontends))
            for workers, frontends in zip(
                slices(workload.workers, load_processes),
                slices(workload.frontends, load_processes),
                strict=True,
            )
        ]
        try:
            return _watched(psutil.Process(process.pid), loads)
        finally:
            for load in loads:
                load.kill()
                load.wait()


def _watched(broker_process: psutil.Process, loads: list["subprocess.Popen[str]"]) -> Measured:
    for load in loads:
        _expect(load, "warm")
    began, before = time.monotonic(), _used(broker_process, loads)
    for load in loads:
        _expect(load, "measured")
    after, wall_s = _used(broker_process, loads), time.monotonic() - began
    rss_mb = broker_process.memory_info().rss / 1e6
    seen = [json.loads(load.communicate("\n", timeout=60)[0]) for load in loads]
    main_s, io_s, *load_s = (later - earlier for later, earlier in zip(after, before, strict=True))
    return Measured(wall_s=wall_s, broker_s=main_s, broker_io_s=io_s, load_s=load_s, rss_mb=rss_mb, seen=seen)


def _used(broker_process: psutil.Process, loads: list["subprocess.Popen[str]"]) -> list[float]:
    threads = {each.id: each.user_time + each.system_time for each in broker_process.threads()}
    main_s = threads.pop(broker_process.pid)
    of_loads = [sum(psutil.Process(load.pid).cpu_times()[:2]) for load in loads]
    return [main_s, sum(threads.values()), *of_loads]


@contextmanager
def broker(workload: Workload, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    frontends, workers = _endpoints(folder)[1], _endpoints(folder)[0]
    environment = {
        **os.environ,
        "FLUX_BROKER_FRONTENDS_ENDPOINT": frontends,
        "FLUX_BROKER_WORKERS_ENDPOINT": workers,
        "FLUX_BROKER_QUEUE_LIMIT": str(workload.queue_limit),
    }
    log = (folder / "broker.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", UNBOUNDED], env=environment, stdout=log, stderr=log, text=True
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _endpoints(folder: Path) -> tuple[str, str]:
    """For workers, and for frontends."""
    return f"ipc://{folder}/workers", f"ipc://{folder}/frontends"


def _load(
    workload: Workload, endpoints: tuple[str, str], numbers: tuple[range, range]
) -> "subprocess.Popen[str]":
    plan = {
        "workload": asdict(workload),
        "endpoints": endpoints,
        "numbers": [(each.start, each.stop) for each in numbers],
    }
    command = [sys.executable, "-P", "-m", "benchmarks.growth.load", json.dumps(plan)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _expect(load: "subprocess.Popen[str]", word: str) -> None:
    assert load.stdout is not None
    said = load.stdout.readline().strip()
    if said != word:
        raise RuntimeError(f"a load process said {said!r}, expected {word!r}")
