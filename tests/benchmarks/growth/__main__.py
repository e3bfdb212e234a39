"""How the broker's cost grows with workers and with jobs: `tox -e growth`, or `python -m benchmarks.growth`.

A real broker between simulated workers and frontends, on the real wire; or its core alone, in simulated time
(`--core`). The load shares the machine with the broker: CPU seconds are the broker's own, latencies are not.
"""

import argparse
import base64
import json
import statistics
from collections.abc import Sequence

from benchmarks.growth.core_cost import CoreRun
from benchmarks.growth.processes import Measured, measure
from benchmarks.growth.workload import Workload

from frontend.brokers import Standing
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.status import HostLoad, metrics_document, service_status
from proto.codec import decode, encode
from proto.messages import Snapshot, SnapshotRequest

COLUMNS = (
    "| workers | jobs/s asked | jobs/s done | refused/s | broker CPU (main + I/O), s/s | ms a job | RSS, MB "
    "| SUBMIT to START, p50 / p99 ms | added to a job, p50 / p99 ms | SNAPSHOT: kB, p50 ms | JSON kB "
    "| load CPU, s/s |"
)
CORE_KINDS = ("WorkerReport", "Submit", "Outcome", "FrontendReport", "SnapshotRequest", "TimerFired")


def row(workload: Workload, seen: Measured) -> str:
    images, wall_s = seen.counted("images"), seen.wall_s
    refused = sum(
        n for each in seen.seen for name, n in each["counts"].items() if name.startswith("refused ")
    )
    picture_kb, json_kb = _sizes_kb(seen)
    cells = [
        f"{workload.workers}",
        f"{workload.jobs_per_s:g}",
        f"{images / wall_s:.0f}",
        f"{refused / wall_s:.0f}",
        f"{seen.broker_s / wall_s:.3f} + {seen.broker_io_s / wall_s:.3f}",
        f"{(seen.broker_s + seen.broker_io_s) / images * 1000:.2f}" if images else "-",
        f"{seen.rss_mb:.0f}",
        _percentiles_ms(seen.all_seen("dispatch_s")),
        _percentiles_ms(seen.all_seen("added_s")),
        f"{picture_kb:.0f}, {_median_ms(seen.all_seen('snapshot_s'))}",
        f"{json_kb:.0f}",
        " + ".join(f"{each / wall_s:.2f}" for each in seen.load_s),
    ]
    return f"| {' | '.join(cells)} |"


def _percentiles_ms(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return "-"
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return f"{statistics.median(seconds) * 1000:.1f} / {p99 * 1000:.1f}"


def _median_ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}" if seconds else "-"


def _sizes_kb(seen: Measured) -> tuple[float, float]:
    """Of a SNAPSHOT, and of the document that a frontend makes of it."""
    headers = [base64.b64decode(each["snapshot"]) for each in seen.seen if each["snapshot"]]
    if not headers:
        return 0.0, 0.0
    prefix = bytearray(encode(SnapshotRequest(seq=0))[0])
    prefix[5] = 11
    snapshot = decode([bytes(prefix), headers[-1]])
    assert isinstance(snapshot, Snapshot)
    broker = BrokerPicture(
        broker_id="broker",
        endpoint="tcp://broker:5560",
        standing=Standing.LIVE,
        gets_calls=True,
        snapshot=snapshot,
        age_s=0.0,
    )
    status = service_status(ServicePicture(brokers=(broker,), own_refusals={}, own_shed={}))
    load = HostLoad(cpu_percent=0.0, ram_used_mb=0.0, gpu_used_mb=0.0)
    return len(headers[-1]) / 1000, len(json.dumps(metrics_document(status, load, True))) / 1000


def core_row(workload: Workload) -> str:
    costs = CoreRun(workload).run()
    cells = [
        f"{workload.workers}",
        f"{workload.jobs_per_s:g}",
        f"{costs.jobs / workload.duration_s:.0f}",
        f"{costs.total_s / workload.duration_s:.3f}",
        f"{costs.total_s / costs.jobs * 1000:.2f}" if costs.jobs else "-",
        *(f"{costs.each_us(kind):.0f}" for kind in CORE_KINDS),
    ]
    return f"| {' | '.join(cells)} |"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.growth")
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--jobs-per-s", type=float, nargs="+", default=[50.0])
    parser.add_argument("--frontends", type=int, default=20)
    parser.add_argument(
        "--busy", type=float, default=0.7, help="share of the workers' time; above 1: overload"
    )
    parser.add_argument("--keyed", type=float, default=0.1, help="share of calls with an idempotency key")
    parser.add_argument("--image-bytes", type=int, default=100_000)
    parser.add_argument("--queue-limit", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0, help="measured, after a warm-up")
    parser.add_argument("--load-processes", type=int, default=2)
    parser.add_argument("--core", action="store_true", help="the core alone, in simulated time")
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    kinds = " | ".join(f"{kind}, µs" for kind in CORE_KINDS)
    columns = f"| workers | jobs/s asked | done | CPU s/s | ms a job | {kinds} |" if given.core else COLUMNS
    print(f"{columns}\n|{'---|' * (columns.count('|') - 1)}", flush=True)
    for workers in given.workers:
        for jobs_per_s in given.jobs_per_s:
            workload = Workload.of(given, workers=workers, jobs_per_s=jobs_per_s)
            print(
                core_row(workload) if given.core else row(workload, measure(workload, given.load_processes)),
                flush=True,
            )


if __name__ == "__main__":
    main()
