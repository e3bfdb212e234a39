"""The metrics of one scrape, in the library's terms: what `metric_catalog.py` names, out of the pictures."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, assert_never

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from frontend import metric_catalog as catalog
from frontend.brokers import Standing
from frontend.call_tally import CallNumbers
from frontend.cluster import BrokerLife, BrokerPicture, ServicePicture
from frontend.metric_catalog import Kind, Metric
from frontend.status import LOST_STATE, freshest_rows
from frontend.worker_counters import WorkerCounters
from proto.failures import RefusalReason
from proto.messages import Distribution, GpuReading, ModelCard, WorkerPhase, WorkerRow

MIB: Final = 1024 * 1024
OTHER: Final = "other"
"""For what another version of a broker says, and this one does not know: labels stay few."""
STANDINGS: Final = tuple(standing.name.lower() for standing in Standing)
WORKER_STATES: Final = (*(phase.value for phase in WorkerPhase), "busy", LOST_STATE, OTHER)
BROKER_SHED: Final = (
    "fenced_images",
    "frontend_violations",
    "frontends",
    "jobs",
    "turned_away",
    "unread_reports",
    "unsent_messages",
    "unsent_spans",
    "waiters",
    "worker_violations",
    "workers",
)
OWN_SHED: Final = ("frontend_unsent_messages", "frontend_violations")
OWN_REFUSALS: Final = (
    RefusalReason.BROKER_UNREACHABLE,
    RefusalReason.FRONTEND_DRAINING,
    RefusalReason.FRONTEND_FULL,
)
BROKER_REFUSALS: Final = (
    RefusalReason.CLIENT_BUSY,
    RefusalReason.CLIENT_QUEUE_FULL,
    RefusalReason.ALL_WORKERS_BUSY,
    RefusalReason.DEADLINE_TOO_SHORT,
    RefusalReason.WORKERS_NOT_READY,
    RefusalReason.NO_WORKERS,
    RefusalReason.BROKER_DRAINING,
    RefusalReason.BROKER_FULL,
    RefusalReason.IDEMPOTENCY_MISMATCH,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendPicture:
    """What this frontend knows of itself."""

    version: str
    grpc_up: bool
    ready: bool
    open_calls: int
    calls: CallNumbers
    refused_keys: Mapping[str, int]
    """By problem."""


class Families:
    """Values under their metrics; a metric without any is left out."""

    def __init__(self) -> None:
        self._by_name: dict[str, Family] = {}

    def collect(self) -> Iterable[Family]:
        return self._by_name.values()

    def add(self, metric: Metric, value: float, *labels: str) -> None:
        """`labels` in the catalog's order."""
        family = self._by_name.get(metric.name) or self._new(metric)
        if isinstance(family, InfoMetricFamily):
            family.add_metric(labels, {})
        elif isinstance(family, CounterMetricFamily | GaugeMetricFamily):
            family.add_metric(labels, value)

    def add_info(self, metric: Metric, *labels: str) -> None:
        self.add(metric, 1, *labels)

    def add_states(self, metric: Metric, states: Iterable[str], state: str, *labels: str) -> None:
        """One of the states, which stand in the last label, is 1."""
        for each in states:
            self.add(metric, each == state, *labels, each)

    def add_counts(
        self, metric: Metric, known: Iterable[str], counts: Mapping[str, int], *labels: str
    ) -> None:
        """By the last label. All that is known is there from the start: a first count is an increase then."""
        named = dict.fromkeys(known, 0)
        for name, count in counts.items():
            shown = name if name in named else OTHER
            named[shown] = named.get(shown, 0) + count
        for shown, count in named.items():
            self.add(metric, count, *labels, shown)

    def add_distribution(self, metric: Metric, told: Distribution, *labels: str) -> None:
        """Buckets as Prometheus has them: each holds what the ones before it do."""
        family = self._by_name.get(metric.name) or self._new(metric)
        if isinstance(family, HistogramMetricFamily):
            bounds = [*map(floatToGoString, sorted(set(told.bounds))), "+Inf"]
            counts = [*told.counts, *[0] * len(bounds)]  # For a broker that counts less than it should.
            counts[len(bounds) - 1 :] = [sum(counts[len(bounds) - 1 :])]
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), told.sum)

    def _new(self, metric: Metric) -> Family:
        family = _family(metric)
        self._by_name[metric.name] = family
        return family


def _family(metric: Metric) -> Family:
    match metric.kind:
        case Kind.COUNTER:
            return CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels, unit="")
        case Kind.GAUGE:
            return GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels, unit=metric.unit)
        case Kind.HISTOGRAM:
            return HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels, unit=metric.unit)
        case Kind.INFO:
            return InfoMetricFamily(metric.name.removesuffix("_info"), metric.meaning, labels=metric.labels)
        case _:
            assert_never(metric.kind)


def families(own: FrontendPicture, service: ServicePicture, counters: WorkerCounters) -> Families:
    """All but those of the process itself, which the library knows."""
    found = Families()
    _add_frontend(found, own, service)
    for broker in service.brokers:
        _add_standing(found, broker)
    for life in service.lives():
        _add_broker(found, life)
    rows = freshest_rows(service)
    for row, report_age_s in rows:
        _add_worker(found, row, report_age_s, counters)
    counters.forget_all_but({row.report.worker_id for row, _ in rows})
    _add_hosts(found, rows)
    return found


def _add_frontend(found: Families, own: FrontendPicture, service: ServicePicture) -> None:
    found.add_info(catalog.BUILD_INFO, "frontend", own.version)
    found.add(catalog.GRPC_UP, own.grpc_up)
    found.add(catalog.READY, own.ready)
    found.add(catalog.OPEN_CALLS, own.open_calls)
    for (method, code), count in sorted(own.calls.ended.items()):
        found.add(catalog.CALLS, count, method, code)
    for code, told in sorted(own.calls.request_s.items()):
        found.add_distribution(catalog.REQUEST_S, told, code)
    found.add_distribution(catalog.IMAGE_BYTES, own.calls.image_bytes)
    found.add_counts(catalog.REFUSED_KEYS, own.refused_keys, own.refused_keys)
    found.add_counts(catalog.OWN_REFUSALS, OWN_REFUSALS, service.own_refusals)
    found.add_counts(catalog.OWN_SHED, OWN_SHED, service.own_shed)


def _add_standing(found: Families, broker: BrokerPicture) -> None:
    labels = (broker.broker_id, broker.endpoint)
    found.add_states(catalog.BROKER_STATE, STANDINGS, broker.standing.name.lower(), *labels)
    found.add(catalog.BROKER_GETS_CALLS, broker.gets_calls, *labels)
    if broker.snapshot is not None:
        found.add(catalog.PICTURE_AGE_S, broker.age_s, *labels)


def _add_broker(found: Families, life: BrokerLife) -> None:
    """What it counted stays when it is gone; what was going on does not."""
    name, snapshot = life.name, life.snapshot
    if life.is_alive:
        found.add(catalog.RUNNING_JOBS, snapshot.in_flight, name)
        found.add(catalog.QUEUED_JOBS, snapshot.queued, name)
    ended = {"completed": snapshot.completed, "failed": snapshot.failed, "cancelled": snapshot.cancelled}
    found.add_counts(catalog.JOBS, ended, ended, name)
    found.add_counts(catalog.REFUSALS, BROKER_REFUSALS, snapshot.rejected, name)
    found.add_counts(catalog.SHED, BROKER_SHED, snapshot.shed, name)
    if snapshot.queue_wait_s is not None:
        found.add_distribution(catalog.QUEUE_WAIT_S, snapshot.queue_wait_s, name)
    if snapshot.step_s is not None:
        found.add_distribution(catalog.STEP_S, snapshot.step_s, name)


def _add_worker(found: Families, row: WorkerRow, report_age_s: float, counters: WorkerCounters) -> None:
    report = row.report
    worker = report.worker_id
    model = report.model or ModelCard(engine="", name="", precision="", device="")
    found.add_info(
        catalog.WORKER_INFO,
        worker,
        report.host,
        model.engine,
        model.name,
        model.revision,
        model.quantization,
        model.precision,
        model.device,
        model.memory_plan,
    )
    state = row.state if row.state in WORKER_STATES else OTHER
    found.add_states(catalog.WORKER_STATE, WORKER_STATES, state, worker)
    found.add(catalog.REPORT_AGE_S, report_age_s, worker)
    if row.state == WorkerPhase.LOADING.value:
        found.add(catalog.LOADED_RATIO, report.percent / 100, worker)
    found.add(catalog.MODEL_WARNING, bool(model.warning), worker)
    counted = counters.of(report)
    found.add(catalog.ENGINE_RESTARTS, counted.engine_restarts, worker)
    found.add(catalog.SHED_OUTCOMES, counted.outcomes_shed, worker)
    found.add(catalog.CACHE_HITS, counted.prompt_cache_hits, worker)
    found.add(catalog.CACHE_MISSES, counted.prompt_cache_misses, worker)


def _add_hosts(found: Families, rows: Iterable[tuple[WorkerRow, float]]) -> None:
    """Each host and GPU once, by its freshest reading; what a lost worker read last is not shown."""
    readings = [
        (report_age_s + row.report.readings.age_ms / 1000, row.report, row.report.readings)
        for row, report_age_s in rows
        if row.state != LOST_STATE and row.report.readings is not None
    ]
    readings.sort(key=lambda reading: reading[0])
    hosts: set[str] = set()
    gpus: set[str] = set()
    for age_s, report, taken in readings:
        if report.host not in hosts:
            hosts.add(report.host)
            found.add(catalog.HOST_CPU, taken.cpu_percent / 100, report.host)
            found.add(catalog.HOST_MEMORY_USED, taken.ram_used_mb * MIB, report.host)
            found.add(catalog.HOST_MEMORY, taken.ram_total_mb * MIB, report.host)
            found.add(catalog.HOST_READING_AGE_S, age_s, report.host)
        for gpu in taken.gpus:
            if gpu.uuid not in gpus:
                gpus.add(gpu.uuid)
                _add_gpu(found, gpu, report.host)


def _add_gpu(found: Families, gpu: GpuReading, host: str) -> None:
    found.add_info(catalog.GPU_INFO, gpu.uuid, host, gpu.name)
    found.add(catalog.GPU_MEMORY_USED, gpu.memory_used_mb * MIB, gpu.uuid, host)
    found.add(catalog.GPU_MEMORY, gpu.memory_total_mb * MIB, gpu.uuid, host)
    found.add(catalog.GPU_UTILIZATION, gpu.utilization_percent / 100, gpu.uuid, host)
    found.add(catalog.GPU_TEMPERATURE, gpu.temperature_celsius, gpu.uuid, host)
