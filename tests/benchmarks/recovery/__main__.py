"""How long the service takes to recover from a fault, again and again, with the time limits of production."""

import argparse
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.recovery.faults import (
    blackholed_worker,
    frozen_client,
    killed_broker,
    killed_engine,
    killed_worker,
)
from hosts.cluster import Cluster, among_hosts
from processes.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    name: str
    aim_s: float | None
    """For all but one in a hundred."""
    measure: Callable[[Path, int], Iterator[float]]
    """Gives so many times, in seconds."""
    repetitions: int = 20


def on_stack(
    workers: int, measure: Callable[[Stack], float], **settings: object
) -> Callable[[Path, int], Iterator[float]]:
    def repeated(folder: Path, repetitions: int) -> Iterator[float]:
        with Stack(folder, over_tcp=True) as stack:
            stack.start(workers=workers, **settings)
            for _ in range(repetitions):
                yield measure(stack)

    return repeated


def on_hosts(measure: Callable[[Cluster], float]) -> Callable[[Path, int], Iterator[float]]:
    def repeated(folder: Path, repetitions: int) -> Iterator[float]:
        with among_hosts() as network, Cluster(network, folder) as cluster:
            cluster.start()
            for _ in range(repetitions):
                yield measure(cluster)

    return repeated


RECOVERIES: Final = {
    "broker": Recovery(
        name="broker killed and started again, to the first dispatch",
        aim_s=5.0,
        measure=on_stack(1, killed_broker),
        repetitions=50,
    ),
    "worker": Recovery(
        name="worker killed, to the dispatch of its job to another",
        aim_s=4.0,
        measure=on_stack(2, killed_worker),
    ),
    "blackhole": Recovery(
        name="worker's cable cut, to the dispatch of its job to another",
        aim_s=10.0,
        measure=on_hosts(blackholed_worker),
    ),
    "engine": Recovery(
        name="engine process killed, to the next one ready (warm forkserver)",
        aim_s=None,
        measure=on_stack(1, killed_engine),
    ),
    "embedded": Recovery(
        name="likewise, of the embedded model",
        aim_s=None,
        measure=on_stack(1, killed_engine, engine="embedded"),
    ),
    "client": Recovery(
        name="client frozen, to its worker free", aim_s=None, measure=on_stack(1, frozen_client)
    ),
}


NEED_TORCH: Final = frozenset({"embedded"})


def possible() -> list[str]:
    """Where torch is not installed, not all of them."""
    has_torch = importlib.util.find_spec("torch") is not None
    return [what for what in RECOVERIES if has_torch or what not in NEED_TORCH]


def row(recovery: Recovery, samples: Sequence[float]) -> str:
    p99 = statistics.quantiles(samples, n=100, method="inclusive")[98]
    aim = "" if recovery.aim_s is None else f"< {recovery.aim_s:g}"
    cells = (min(samples), statistics.median(samples), p99, max(samples))
    return f"| {recovery.name} | {len(samples)} | {' | '.join(f'{each:.2f}' for each in cells)} | {aim} |"


@contextmanager
def load_told() -> Iterator[None]:
    began_at, before_s = time.monotonic(), os.times()
    yield
    after_s, lasted_s = os.times(), time.monotonic() - began_at
    own_s = sum(after_s[:4]) - sum(before_s[:4])
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}; {lasted_s:.0f} s, CPU {own_s:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(prog="recovery", description=__doc__)
    parser.add_argument(
        "what", nargs="*", help=f"of {', '.join(RECOVERIES)}; by default all that is possible"
    )
    parser.add_argument("--repetitions", type=int, help="of each; by default 20, of the broker's 50")
    chosen = parser.parse_args()
    if unknown := set(chosen.what) - set(RECOVERIES):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(RECOVERIES)}")
    if chosen.repetitions is not None and chosen.repetitions < 2:
        parser.error("--repetitions: at least 2")
    print(
        "| seconds from | times | min | median | p99 | max | aim |\n|---|---|---|---|---|---|---|", flush=True
    )
    with load_told():
        for what in chosen.what or possible():
            recovery = RECOVERIES[what]
            with tempfile.TemporaryDirectory(prefix="flux-recovery-") as folder:
                samples = list(recovery.measure(Path(folder), chosen.repetitions or recovery.repetitions))
            print(row(recovery, samples), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
