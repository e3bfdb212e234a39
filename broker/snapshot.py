"""What the metrics show of the broker: derived from its tables when asked for, and a few counters."""

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from broker.jobs import JobTable
from broker.workers import LostWorker, Worker, WorkerTable
from proto.failures import RefusalReason
from proto.histogram import Histogram
from proto.messages import MAX_SNAPSHOT_BYTES, Snapshot, WorkerRow

MAX_ROWS: Final = 1000
"""Workers in one snapshot."""
ROOM_BYTES: Final = MAX_SNAPSHOT_BYTES - 64 * 1024
"""For rows; the rest is for what stands before them."""
ROW_BYTES: Final = 800
GPU_BYTES: Final = 130
"""A row, or a GPU in it, takes at most so much beside its texts: a test holds this against the codec."""


QUEUE_WAIT_BOUNDS_S: Final = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Up to the longest time of a job."""
STEP_BOUNDS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""From the embedded model to weights that are fetched from main memory for each step."""


@dataclass(slots=True)
class Counters:
    """Since the broker started."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: Counter[RefusalReason] = field(default_factory=Counter)
    shed: Counter[str] = field(default_factory=Counter)
    """What was dropped to keep a bound or a fence, by kind."""
    queue_wait_s: Histogram = field(default_factory=lambda: Histogram(QUEUE_WAIT_BOUNDS_S))
    """Of each new job, until its first execution began."""
    step_s: Histogram = field(default_factory=lambda: Histogram(STEP_BOUNDS_S))
    """Of each image, the mean time of its denoising steps."""


def snapshot(
    broker_id: str,
    epoch: bytes,
    echo: int,
    now: float,
    workers: WorkerTable,
    jobs: JobTable,
    counters: Counters,
) -> Snapshot:
    return Snapshot(
        broker_id=broker_id,
        epoch=epoch,
        echo=echo,
        in_flight=len(jobs.dispatched),
        queued=jobs.waiting,
        completed=counters.completed,
        failed=counters.failed,
        cancelled=counters.cancelled,
        rejected={reason.value: count for reason, count in counters.rejected.items()},
        shed=dict(counters.shed),
        workers=_fitting(
            [
                *(_row(worker, worker.state_name(), now) for worker in workers),
                *(_row(lost, "lost", now) for lost in workers.lost.values()),
            ]
        ),
        queue_wait_s=counters.queue_wait_s.distribution(),
        step_s=counters.step_s.distribution(),
    )


def _fitting(rows: list[WorkerRow]) -> tuple[WorkerRow, ...]:
    """The first ones, as many as one message can carry."""
    fitting = sum(size <= ROOM_BYTES for size in accumulate(map(size_bytes, rows[:MAX_ROWS])))
    return tuple(rows[:fitting])


def size_bytes(row: WorkerRow) -> int:
    """An upper bound."""
    report = row.report
    gpus = report.readings.gpus if report.readings else ()
    texts = [row.state, report.worker_id, report.host, report.activity]
    if (model := report.model) is not None:
        texts += (model.engine, model.name, model.precision, model.device, model.warning)
        texts += (model.revision, model.quantization, model.memory_plan, model.versions)
    if report.running is not None:
        texts.append(report.running.claim.key_fingerprint)
    for gpu in gpus:
        texts += (gpu.uuid, gpu.name)
    return ROW_BYTES + GPU_BYTES * len(gpus) + len("".join(texts).encode())


def _row(worker: Worker | LostWorker, state: str, now: float) -> WorkerRow:
    return WorkerRow(
        report=dataclasses.replace(worker.report, held=()) if worker.report.held else worker.report,
        state=state,
        report_age_ms=max(0, round((now - worker.heard_at) * 1000)),
    )
