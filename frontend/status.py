"""The state of the whole service as one document, for `GET /metrics` and for the `Metrics` call alike."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from google.protobuf import json_format

import image_gen_pb2
from frontend.cluster import BrokerLife, BrokerPicture, ServicePicture
from proto.messages import MAX_FLOAT, ModelCard, Readings, WorkerRow

SERVING_STATES: Final = frozenset({"ready", "busy"})
LOST_STATE: Final = "lost"
UINT32_MAX: Final = 2**32 - 1
UINT64_MAX: Final = 2**64 - 1

_CONTRACT_NAMES: Final = {
    "age_s": "age_seconds",
    "report_age_s": "report_age_seconds",
    "reading_age_s": "reading_age_seconds",
}
"""Where the public contract names a field otherwise than the JSON document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStatus:
    uuid: str
    name: str
    memory_used_mb: float
    memory_total_mb: float
    utilization_percent: float
    temperature_celsius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """One worker. None stands for what is not known: a worker without readings is not one at 0 %."""

    worker_id: str
    host: str
    state: str
    job_id: str
    model: str
    engine: str
    precision: str
    device: str
    warning: str
    phase: str
    percent: int
    step: int
    steps: int
    report_age_s: float
    reading_age_s: float | None
    cpu_percent: float | None
    ram_used_mb: float | None
    ram_total_mb: float | None
    gpus: list[GpuStatus]
    engine_restarts: int
    outcomes_shed: int
    model_revision: str
    quantization: str
    memory_plan: str
    versions: str
    prompt_cache_hits: int
    prompt_cache_misses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerStatus:
    broker_id: str
    """Empty until it has answered for the first time."""
    state: str
    """`live`, `without_workers`, `rebuilding`, `unheard`, `draining` or `silent`: see `brokers.Standing`."""
    gets_calls: bool
    """New calls of this frontend go there."""
    in_flight: int
    queued: int
    age_s: float | None
    """Of its latest picture, which is asked for when somebody asks; None until there is one."""
    endpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """All fields but `broker_alive`, `brokers` and `age_s` are at most as old as `age_s` says."""

    in_flight: int
    queued: int
    completed: int
    failed: int
    cancelled: int
    rejected: dict[str, int]
    shed: dict[str, int]
    workers: list[WorkerStatus]
    broker_alive: bool
    brokers: list[BrokerStatus]
    age_s: float | None
    """None until a broker has answered for the first time."""

    @property
    def worker_alive(self) -> bool:
        """A worker is ready or busy. Without a broker nobody knows of one, or could use it."""
        return self.broker_alive and any(worker.state in SERVING_STATES for worker in self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLoad:
    """The hosts' load: the mean of their CPUs, the sums of their memories in MiB."""

    cpu_percent: float
    ram_used_mb: float
    gpu_used_mb: float


def service_status(picture: ServicePicture) -> ServiceStatus:
    """What the frontend tells the world about `picture`. Ages grow with the picture's own."""
    present = _present(picture)
    told = [life.snapshot for life in picture.lives()]
    return ServiceStatus(
        in_flight=_uint32(sum(life.snapshot.in_flight for life in present)),
        queued=_uint32(sum(life.snapshot.queued for life in present)),
        completed=_uint64(sum(snapshot.completed for snapshot in told)),
        failed=_uint64(sum(snapshot.failed for snapshot in told)),
        cancelled=_uint64(sum(snapshot.cancelled for snapshot in told)),
        rejected=_summed(picture.own_refusals, *(snapshot.rejected for snapshot in told)),
        shed=_summed(picture.own_shed, *(snapshot.shed for snapshot in told)),
        workers=[_worker_status(row, report_age_s) for row, report_age_s in freshest_rows(picture)],
        broker_alive=picture.broker_alive,
        brokers=[_broker_status(broker) for broker in picture.brokers],
        age_s=_rounded(max(life.age_s for life in present)) if present else None,
    )


def _present(picture: ServicePicture) -> list[BrokerLife]:
    """What the brokers say that are alive; if none is, what they said last."""
    lives = picture.lives()
    return [life for life in lives if life.is_alive] or lives


def freshest_rows(picture: ServicePicture) -> list[tuple[WorkerRow, float]]:
    """One row a worker, by the broker that heard it last, with the age of its report in seconds.

    In the order in which they are first named.
    """
    freshest: dict[str, tuple[WorkerRow, float]] = {}
    for life in _present(picture):
        for row in life.snapshot.workers:
            report_age_s = row.report_age_ms / 1000 + life.age_s
            known = freshest.get(row.report.worker_id)
            if known is None or report_age_s < known[1]:
                freshest[row.report.worker_id] = (row, report_age_s)
    return list(freshest.values())


def _broker_status(broker: BrokerPicture) -> BrokerStatus:
    snapshot = broker.snapshot
    return BrokerStatus(
        broker_id=broker.broker_id,
        state=broker.standing.name.lower(),
        gets_calls=broker.gets_calls,
        in_flight=0 if snapshot is None else _uint32(snapshot.in_flight),
        queued=0 if snapshot is None else _uint32(snapshot.queued),
        age_s=None if snapshot is None else _rounded(broker.age_s),
        endpoint=broker.endpoint,
    )


def host_load(workers: Iterable[WorkerStatus]) -> HostLoad | None:
    """The load of the workers' distinct hosts and GPUs, by the freshest reading of each.

    A lost worker's readings do not count. None where no reading is left.
    """
    live = [worker for worker in workers if worker.state != LOST_STATE and worker.reading_age_s is not None]
    if not live:
        return None
    oldest_first = sorted(live, key=lambda worker: -(worker.reading_age_s or 0.0))
    hosts = {worker.host: worker for worker in oldest_first}
    gpus = {gpu.uuid: gpu for worker in oldest_first for gpu in worker.gpus}
    return HostLoad(
        cpu_percent=_rounded(sum(worker.cpu_percent or 0.0 for worker in hosts.values()) / len(hosts)),
        ram_used_mb=_rounded(sum(worker.ram_used_mb or 0.0 for worker in hosts.values())),
        gpu_used_mb=_rounded(sum(gpu.memory_used_mb for gpu in gpus.values())),
    )


def metrics_document(status: ServiceStatus, this_host: HostLoad, grpc_alive: bool) -> dict[str, object]:
    """The JSON document of `GET /metrics`.

    Args:
        this_host: the frontend's own host, which counts where no worker has told about its own.
        grpc_alive: whether this frontend's gRPC port answers.
    """
    load = host_load(status.workers) or this_host
    alive = {"worker_alive": status.worker_alive, "grpc_alive": grpc_alive}
    return {**asdict(load), **alive, **asdict(status)}


def metrics_response(status: ServiceStatus) -> image_gen_pb2.MetricsResponse:
    """The same for the `Metrics` call; what is not known is left out."""
    document = asdict(status)
    for rows in ("workers", "brokers"):
        document[rows] = [_in_contract_names(row) for row in document[rows]]
    return json_format.ParseDict(_in_contract_names(document), image_gen_pb2.MetricsResponse())


def _in_contract_names(fields: Mapping[str, object]) -> dict[str, object]:
    return {_CONTRACT_NAMES.get(name, name): value for name, value in fields.items()}


def _summed(*counts: Mapping[str, int]) -> dict[str, int]:
    """By name: what this frontend counted itself, and each broker."""
    counted: Counter[str] = Counter()
    for each in counts:
        counted.update(each)
    return {name: _uint64(count) for name, count in sorted(counted.items())}


def _worker_status(row: WorkerRow, report_age_s: float) -> WorkerStatus:
    report = row.report
    # What a lost worker ran is another's by now, or ended.
    running = None if row.state == LOST_STATE else report.running
    model = report.model or ModelCard(engine="", name="", precision="", device="")
    readings = report.readings
    return WorkerStatus(
        worker_id=report.worker_id,
        host=report.host,
        state=row.state,
        job_id=running.claim.job_id.hex() if running else "",
        model=model.name,
        engine=model.engine,
        precision=model.precision,
        device=model.device,
        warning=model.warning,
        phase=running.phase.value if running else report.activity,
        percent=report.percent,
        step=_uint32(running.step) if running else 0,
        steps=_uint32(running.steps) if running else 0,
        report_age_s=_rounded(report_age_s),
        reading_age_s=_rounded(report_age_s + readings.age_ms / 1000) if readings else None,
        cpu_percent=readings.cpu_percent if readings else None,
        ram_used_mb=readings.ram_used_mb if readings else None,
        ram_total_mb=readings.ram_total_mb if readings else None,
        gpus=_gpu_statuses(readings) if readings else [],
        engine_restarts=_uint32(report.engine_restarts),
        outcomes_shed=report.outcomes_shed,
        model_revision=model.revision,
        quantization=model.quantization,
        memory_plan=model.memory_plan,
        versions=model.versions,
        prompt_cache_hits=report.prompt_cache_hits,
        prompt_cache_misses=report.prompt_cache_misses,
    )


def _gpu_statuses(readings: Readings) -> list[GpuStatus]:
    return [
        GpuStatus(
            uuid=gpu.uuid,
            name=gpu.name,
            memory_used_mb=gpu.memory_used_mb,
            memory_total_mb=gpu.memory_total_mb,
            utilization_percent=gpu.utilization_percent,
            temperature_celsius=gpu.temperature_celsius,
        )
        for gpu in readings.gpus
    ]


def _uint32(value: int) -> int:
    """The contract's counters are narrower than the wire's; one absurd number must not cost all others."""
    return min(value, UINT32_MAX)


def _uint64(value: int) -> int:
    return min(value, UINT64_MAX)


def _rounded(value: float) -> float:
    """Sums of readings included: each is finite, and JSON knows no infinity."""
    return min(round(value, 3), MAX_FLOAT)
