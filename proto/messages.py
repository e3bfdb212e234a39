"""The messages between frontend, broker and worker. PROTOCOL.md says who sends what, when and why.

Each is a frozen dataclass; the field types carry the limits that the codec enforces on everything that
arrives. Prompts and images travel as `body`, in a frame of their own beside the header.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from sys import float_info
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta

from proto.failures import FailureCode, RefusalReason

ID_SIZE_BYTES: Final = 16
MAX_PROMPT_BYTES: Final = 8 * 1024
MAX_IMAGE_BYTES: Final = 16 * 1024 * 1024
MAX_SNAPSHOT_BYTES: Final = 4 * 1024 * 1024
"""The header of a SNAPSHOT: 1000 workers with all that they say of themselves."""
MAX_KEY_JOBS: Final = 1000
"""Active jobs that one API key may have at most."""
MAX_LISTED: Final = 4096
"""Entries in any list of a message: a longer one is malformed."""
MAX_TRACESTATE_CHARACTERS: Final = 512
"""What W3C Trace Context asks everybody to pass on."""
MAX_BUCKETS: Final = 64
"""Of a distribution."""
MAX_FLOAT: Final = float_info.max
"""What is above it, or not a number, is not finite."""

Id = Annotated[bytes, Meta(min_length=ID_SIZE_BYTES, max_length=ID_SIZE_BYTES)]
"""128 random bits: a job, an execution, an incarnation, an epoch. Compared for equality only."""
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Text = Annotated[str, Meta(max_length=1024)]
Flag = bool
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Sequence = Count
Attempts = Annotated[int, Meta(ge=0, le=1000)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Reading = Annotated[float, Meta(ge=0, le=MAX_FLOAT)]
Seconds = Annotated[float, Meta(ge=0, le=1_000_000)]
"""Longer than anything takes, and short enough to be added up."""
Seed = Annotated[int, Meta(ge=0, extra_json_schema={"exclusiveMaximum": 2**64})]
"""msgspec knows no bound above 2^63, and msgpack no integer from 2^64 on."""
Ids = Annotated[tuple[Id, ...], Meta(max_length=MAX_LISTED)]
if TYPE_CHECKING:
    Body = bytes | memoryview
else:
    # The codec made it of a frame and checks it; msgspec knows no such union.
    Body = Any


# --- What travels with a job -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParameters:
    """What image is asked for, beside the prompt. Ranges are the contract's; the frontend validated them."""

    height: Annotated[int, Meta(ge=1, le=8192)]
    width: Annotated[int, Meta(ge=1, le=8192)]
    steps: Annotated[int, Meta(ge=1, le=1000)]
    guidance: Annotated[float, Meta(ge=0, le=MAX_FLOAT)]
    seed: Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """The span below which a job's spans belong, as in W3C Trace Context. It decides nothing."""

    traceparent: Annotated[str, Meta(min_length=55, max_length=55)]
    """Version 00, with the flag for a sampled one: what is not sampled has no context here."""
    tracestate: Annotated[str, Meta(max_length=MAX_TRACESTATE_CHARACTERS)] = ""
    """Of whoever began the trace; left out where it is longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClaim:
    """Whose job it is and what is left of it: enough to rebuild the broker's knowledge from any side."""

    job_id: Id
    key_fingerprint: Name
    """Which API key it counts for: the name of its owner, or its fingerprint; never the key."""
    parameters_digest: Id
    """Digest of prompt and parameters: two jobs of one idempotency key must agree on it."""
    idempotency_hash: Id | None = None
    """Of the client's idempotency key, scoped to its API key. Repeats of one call have the same."""
    detach: Flag = False
    """Goes on when its last waiter has left. Only with an idempotency key, as nobody could ask for it."""
    remaining_ms: Milliseconds
    """Time left until its deadline, on the sender's clock at sending; in `held` as its START said."""
    attempts: Attempts = 0
    """Executions begun so far, in a START that one included. A counter, merged by maximum; never a fence."""
    crashes: Attempts = 0
    """Engine processes that died on it. Likewise; only a worker raises it."""


# --- Worker and broker -------------------------------------------------------------------------


class WorkerPhase(StrEnum):
    """What a worker can take. Whether it runs something is told by `WorkerReport.running`."""

    LOADING = "loading"
    """It has no engine process yet, or no longer, and brings one up."""
    READY = "ready"
    """It takes a job or draws one, and SHOULD have a `model`. Only such a worker is given one."""
    DRAINING = "draining"
    """It finishes what it has, takes nothing more, and leaves."""
    FAILED = "failed"
    """The engine cannot be brought up; the next try is some time away."""
    QUARANTINED = "quarantined"
    """Its engine died on two different jobs in a row: it takes none until some time has passed."""


class JobPhase(StrEnum):
    """Where in the engine an execution is; the watchdog has a limit for each."""

    TEXT = "text"
    """It encodes the prompt. What has just begun is here."""
    STEP = "step"
    """It denoises."""
    DECODE = "decode"
    """It makes the pixels of the latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningExecution:
    execution_id: Id
    claim: JobClaim
    phase: JobPhase
    step: Count
    """Denoising steps finished."""
    steps: Count
    stopping: Flag = False
    """It was told to stop: it ends without an image."""
    wanted_elsewhere: Flag = False
    """A job of another broker wants it, which this worker has heard of lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutcome:
    """An outcome that the worker keeps until it is released."""

    execution_id: Id
    claim: JobClaim
    failure: FailureCode | None
    """Nil for an image; the key is there all the same."""
    size_bytes: Count
    """Of the PNG; 0 while it is still being made of an image that is drawn."""
    released: Flag = False
    """An image that was delivered, kept for repeats for as long as there is room."""
    wanted_elsewhere: Flag = False
    """As of a `RunningExecution`."""

    @property
    def is_unfinished(self) -> bool:
        """Its image is drawn, and may still fail to become a PNG."""
        return self.failure is None and self.size_bytes == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    uuid: Name
    name: Text
    memory_used_mb: Reading
    memory_total_mb: Reading
    utilization_percent: Reading
    temperature_celsius: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Of the worker's host and its GPUs. Megabytes are MiB."""

    cpu_percent: Reading
    """Of the host: 100 is all its cores."""
    ram_used_mb: Reading
    ram_total_mb: Reading
    gpus: Annotated[tuple[GpuReading, ...], Meta(max_length=64)] = ()
    age_ms: Milliseconds = 0
    """How old they were when they were sent; drivers can block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a worker draws with. A text that is not known is empty."""

    engine: Name
    name: Text
    precision: Text
    """The type in which it computes."""
    device: Text
    warning: Text = ""
    revision: Text = ""
    """The commit of the model's repository, or what else tells its versions apart."""
    quantization: Text = ""
    """How the weights are stored, if otherwise than `precision` says."""
    memory_plan: Text = ""
    """What lies where while it draws."""
    versions: Text = ""
    """Of the libraries that make a difference to the pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """Worker to broker: its whole state. The first one registers it."""

    worker_id: Name
    incarnation: Id
    seq: Sequence
    host: Name
    age_ms: Milliseconds = 0
    """How long this incarnation has lived: of two that claim one `worker_id`, the younger is right."""
    phase: WorkerPhase
    activity: Text = ""
    """What it does while it is not ready: a loading phase, a reason."""
    percent: Percent = 0
    model: ModelCard | None = None
    running: RunningExecution | None = None
    held: Annotated[tuple[HeldOutcome, ...], Meta(max_length=MAX_LISTED)] = ()
    readings: Readings | None = None
    engine_restarts: Count = 0
    outcomes_shed: Count = 0
    """Outcomes that gave way before they were released, for lack of room or by age."""
    prompt_cache_hits: Count = 0
    """Images drawn whose prompt had been encoded before."""
    prompt_cache_misses: Count = 0
    """And those whose prompt had not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """Broker to worker: the answer to a report, and at once when the broker wants something new."""

    broker_id: Name
    epoch: Id
    echo: Sequence
    """The latest `seq` heard of this worker."""
    heartbeat_interval_ms: Milliseconds
    cancel: Ids = ()
    release: Ids = ()
    """Nobody will ask for these outcomes again."""
    keep: Ids = ()
    """Released too, but a repeat may ask for them: keep them while there is room."""
    resend: Ids = ()
    wanted: Ids = ()
    """Executions at this worker that a job of this broker waits for: no other broker may end them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Broker to worker: run this. Sending it again changes nothing."""

    epoch: Id
    incarnation: Id
    """The life of the worker that it is meant for."""
    execution_id: Id
    claim: JobClaim
    parameters: ImageParameters
    trace: TraceContext | None = None
    """As the job's SUBMIT had it."""
    body: Body
    """The prompt, UTF-8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMade:
    inference_time_s: Seconds
    """Until its pixels were there."""
    seed: Seed
    """As in the START."""
    model: ModelCard | None = None
    """That drew it."""
    steps_time_s: Seconds | None = None
    """Of the time above, what the denoising steps took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed:
    code: FailureCode
    detail: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Worker to broker, which passes it on to every frontend that waits: how an execution ended."""

    worker_id: Name
    incarnation: Id
    seq: Sequence
    execution_id: Id
    job_id: Id
    """To a frontend: the job of its own SUBMIT, of which the execution may be shared with others."""
    attempts: Attempts
    crashes: Attempts
    image: ImageMade | None = None
    """Exactly one of `image` and `failure` is there; the codec sees to it."""
    failure: JobFailed | None = None
    body: Body = b""
    """The PNG; empty for a failure."""


# --- Frontend and broker -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendReport:
    """Frontend to broker: all jobs that it waits for. What is missing here has been given up."""

    frontend_id: Name
    incarnation: Id
    seq: Sequence
    jobs: Ids = ()
    elsewhere: Ids = ()
    """Open jobs that it had submitted here and has moved to another broker: given up, not cancelled."""


class JobState(StrEnum):
    QUEUED = "queued"
    """It waits for a worker."""
    RUNNING = "running"
    """A worker has it, or a START is on its way to one."""
    ENDED = "ended"
    """Its outcome is on the way."""
    PENDING = "pending"
    """Neither accepted nor refused yet: the broker has just started, and will judge it soon."""
    UNKNOWN = "unknown"
    """The broker has no such job: submit it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    job_id: Id
    state: JobState
    execution_id: Id | None = None
    attempts: Attempts = 0
    crashes: Attempts = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendView:
    """Broker to frontend: the answer to a report or an accepted SUBMIT, and at once on a change."""

    broker_id: Name
    epoch: Id
    echo: Sequence
    heartbeat_interval_ms: Milliseconds
    ready_workers: Count
    """Workers that have a loaded model, idle or busy."""
    draining: Flag = False
    rebuilding: Flag = False
    """It has just started: new jobs wait until it knows what is there."""
    jobs: Annotated[tuple[JobStatus, ...], Meta(max_length=MAX_LISTED)] = ()
    """Those that changed, or all that a report listed. A job missing here means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Frontend to broker: run this job, or go on with it."""

    frontend_id: Name
    incarnation: Id
    seq: Sequence
    claim: JobClaim
    parameters: ImageParameters
    accepted: Flag = False
    """It had been accepted before: the admission table no longer applies."""
    execution_id: Id | None = None
    """The execution that the frontend last heard of."""
    key_job_limit: Annotated[int, Meta(ge=1, le=MAX_KEY_JOBS)] = 1
    """Active jobs that its API key may have."""
    key_queue_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of the broker's queue, that its API key may fill."""
    trace: TraceContext | None = None
    """None where the call is not traced."""
    body: Body
    """The prompt, UTF-8."""


# --- Both --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Broker to frontend: this job was not accepted. Worker to broker: this START was not begun.

    Broker to any peer, without ids: the peer itself is not served.
    """

    reason: RefusalReason
    detail: Text = ""
    job_id: Id | None = None
    execution_id: Id | None = None
    retry_after_ms: Milliseconds | None = None
    """None where waiting cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A frontend or worker ends its life on purpose; nothing of it needs to be waited for."""

    incarnation: Id
    seq: Sequence
    reason: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """Frontend to broker: what is going on?"""

    seq: Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRow:
    """A worker as the broker knows it."""

    report: WorkerReport
    """The last one; its `held` is left out."""
    state: Name
    """A `WorkerPhase`, or `busy`, or `lost`."""
    report_age_ms: Milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a `proto.histogram.Histogram` has counted since its process started."""

    bounds: Annotated[tuple[Reading, ...], Meta(max_length=MAX_BUCKETS)]
    """The upper ends of its buckets, ascending."""
    counts: Annotated[tuple[Count, ...], Meta(max_length=MAX_BUCKETS + 1)]
    """Of the values in each bucket, and above them all."""
    sum: Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Broker to frontend: the answer. Counters start with the broker."""

    broker_id: Name
    epoch: Id
    echo: Sequence
    in_flight: Count
    queued: Count
    completed: Count
    failed: Count
    cancelled: Count
    rejected: dict[Name, Count]
    """By `RefusalReason`; a newer broker may know more of them."""
    shed: dict[Name, Count] = field(default_factory=dict)
    """What was dropped to keep a bound or a fence, by kind."""
    workers: Annotated[tuple[WorkerRow, ...], Meta(max_length=MAX_LISTED)] = ()
    queue_wait_s: Distribution | None = None
    """Of each new job, from its admission until its first execution began."""
    step_s: Distribution | None = None
    """Of each image, the mean time of its denoising steps."""


ToBrokerFromWorker = WorkerReport | Outcome | Refuse | Leave
ToBrokerFromFrontend = FrontendReport | Submit | SnapshotRequest | Leave
ToWorker = WorkerView | Start | Refuse
ToFrontend = FrontendView | Outcome | Refuse | Snapshot
Message = ToBrokerFromWorker | ToBrokerFromFrontend | ToWorker | ToFrontend
