"""Every metric of the service in Prometheus' terms. docs/metrics.md has the same table; a test compares them.

The prefix says whose a value is. `flux_frontend_…` is of the frontend that is asked. The rest is of the whole
service: every frontend tells the same, and who asks several must not add that up.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"
    """A gauge that is always 1: the labels are what it tells."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    """As queries have it, with `_total` or `_info`; a histogram's without `_bucket`."""
    kind: Kind
    labels: tuple[str, ...]
    meaning: str

    @property
    def unit(self) -> str:
        """The base unit in its name; empty for plain counts."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return last if last in UNITS else ""


UNITS: Final = frozenset({"bytes", "celsius", "ratio", "seconds"})
CATALOG: Final[list[Metric]] = []
"""In the order in which they are defined."""


def _metric(kind: Kind, name: str, labels: str, meaning: str) -> Metric:
    metric = Metric(name, kind, tuple(labels.split()), meaning)
    CATALOG.append(metric)
    return metric


def _counter(name: str, labels: str, meaning: str) -> Metric:
    return _metric(Kind.COUNTER, name, labels, meaning)


def _gauge(name: str, labels: str, meaning: str) -> Metric:
    return _metric(Kind.GAUGE, name, labels, meaning)


def _histogram(name: str, labels: str, meaning: str) -> Metric:
    return _metric(Kind.HISTOGRAM, name, labels, meaning)


def _info(name: str, labels: str, meaning: str) -> Metric:
    return _metric(Kind.INFO, name, labels, meaning)


# --- This frontend -----------------------------------------------------------------------------

BUILD_INFO: Final = _info("flux_build_info", "component version", "This frontend's version.")
GRPC_UP: Final = _gauge("flux_frontend_grpc_up", "", "Its gRPC port answers a real call.")
READY: Final = _gauge("flux_frontend_ready", "", "A call has a chance now, as /readyz says.")
OPEN_CALLS: Final = _gauge("flux_frontend_open_calls", "", "Calls that wait for their answer.")
CALLS: Final = _counter(
    "flux_frontend_calls_total", "method code", "Calls that have ended, by gRPC code; those with a valid key."
)
REQUEST_S: Final = _histogram(
    "flux_frontend_request_seconds", "code", "Generate calls, from the request's arrival to the answer."
)
IMAGE_BYTES: Final = _histogram("flux_frontend_image_bytes", "", "PNGs in answers, one for each call.")
REFUSED_KEYS: Final = _counter(
    "flux_frontend_refused_keys_total", "reason", "Calls and scrapes without one valid API key."
)
OWN_REFUSALS: Final = _counter(
    "flux_frontend_refused_jobs_total", "reason", "Jobs that it refused without asking a broker."
)
OWN_SHED: Final = _counter("flux_frontend_shed_total", "kind", "What it dropped to keep a bound.")
BROKER_STATE: Final = _gauge(
    "flux_frontend_broker_state",
    "broker endpoint state",
    "How it sees each broker: 1 for the state it is in.",
)
BROKER_GETS_CALLS: Final = _gauge(
    "flux_frontend_broker_gets_calls", "broker endpoint", "Its new calls go to this broker."
)
PICTURE_AGE_S: Final = _gauge(
    "flux_frontend_broker_picture_age_seconds",
    "broker endpoint",
    "Age of what this broker told last, which the metrics below are made of.",
)

# --- Brokers -----------------------------------------------------------------------------------

RUNNING_JOBS: Final = _gauge("flux_broker_running_jobs", "broker", "Jobs that a worker was told to run.")
QUEUED_JOBS: Final = _gauge("flux_broker_queued_jobs", "broker", "Jobs that wait for a worker.")
JOBS: Final = _counter(
    "flux_broker_jobs_total", "broker outcome", "Jobs that have ended: completed, failed or cancelled."
)
REFUSALS: Final = _counter("flux_broker_refused_jobs_total", "broker reason", "Jobs that were not admitted.")
SHED: Final = _counter(
    "flux_broker_shed_total", "broker kind", "What was dropped to keep a bound or a fence."
)
QUEUE_WAIT_S: Final = _histogram(
    "flux_broker_queue_wait_seconds", "broker", "New jobs, from admission until their first execution began."
)
STEP_S: Final = _histogram(
    "flux_broker_step_seconds", "broker", "Images drawn, each with the mean time of its denoising steps."
)

# --- Workers -----------------------------------------------------------------------------------

WORKER_INFO: Final = _info(
    "flux_worker_info",
    "worker host engine model revision quantization precision device memory_plan",
    "What it is, and the model that it has loaded.",
)
WORKER_STATE: Final = _gauge("flux_worker_state", "worker state", "1 for the state it is in.")
REPORT_AGE_S: Final = _gauge("flux_worker_report_age_seconds", "worker", "Since a broker last heard of it.")
LOADED_RATIO: Final = _gauge("flux_worker_loaded_ratio", "worker", "How far it is, while it loads its model.")
MODEL_WARNING: Final = _gauge(
    "flux_worker_model_warning", "worker", "Its model has a warning, whose text is in the JSON page."
)
ENGINE_RESTARTS: Final = _counter(
    "flux_worker_engine_restarts_total", "worker", "Engine processes that had to be replaced."
)
SHED_OUTCOMES: Final = _counter(
    "flux_worker_shed_outcomes_total", "worker", "Images and failures that gave way before delivery."
)
CACHE_HITS: Final = _counter(
    "flux_worker_prompt_cache_hits_total", "worker", "Images whose prompt had been encoded before."
)
CACHE_MISSES: Final = _counter(
    "flux_worker_prompt_cache_misses_total", "worker", "Those whose prompt had not."
)

# --- Their hosts and GPUs ----------------------------------------------------------------------

HOST_CPU: Final = _gauge("flux_host_cpu_ratio", "host", "CPU time in use, of all cores.")
HOST_MEMORY_USED: Final = _gauge("flux_host_memory_used_bytes", "host", "Main memory in use.")
HOST_MEMORY: Final = _gauge("flux_host_memory_size_bytes", "host", "Main memory.")
HOST_READING_AGE_S: Final = _gauge("flux_host_reading_age_seconds", "host", "Age of these readings.")
GPU_INFO: Final = _info("flux_gpu_info", "gpu host name", "A GPU that a worker uses, by its UUID.")
GPU_MEMORY_USED: Final = _gauge("flux_gpu_memory_used_bytes", "gpu host", "Device memory in use, by anybody.")
GPU_MEMORY: Final = _gauge("flux_gpu_memory_size_bytes", "gpu host", "Device memory.")
GPU_UTILIZATION: Final = _gauge(
    "flux_gpu_utilization_ratio", "gpu host", "Of the last moment before its reading."
)
GPU_TEMPERATURE: Final = _gauge("flux_gpu_temperature_celsius", "gpu host", "Its temperature.")
