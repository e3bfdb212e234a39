"""Why there is no image, in gRPC's words: a status, and details that a program can read.

Every error carries `google.rpc.ErrorInfo`, whose `reason` tells apart what shares a status code: "busy" is
not gRPC's own `RESOURCE_EXHAUSTED` for a message that is too large.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode

from frontend.actions import JobGivenUp, JobRefused
from frontend.repeats import IDEMPOTENCY_KEY_METADATA, field_name
from frontend.validation import FieldViolation
from proto.failures import FailureCode, RefusalReason

DOMAIN: Final = "imagegen"
INVALID_REQUEST: Final = "INVALID_REQUEST"
INTERNAL_ERROR: Final = "INTERNAL_ERROR"
JOB_ID_FIELD: Final = "job_id"
"""In the metadata of an `ErrorInfo`."""


class RpcFailed(Exception):
    """Ends an RPC with `status`; nothing else of the exception reaches the caller."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Meaning:
    code: StatusCode
    text: str
    field: str = ""
    """Which part of the request is to blame, where one is."""


_MISROUTED = _Meaning(StatusCode.INTERNAL, "the service mixed up its own messages")

_REFUSALS: Final[Mapping[RefusalReason, _Meaning]] = {
    RefusalReason.CLIENT_BUSY: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "this API key already has as many active jobs as it may have"
    ),
    RefusalReason.CLIENT_QUEUE_FULL: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "this API key already has as many waiting jobs as it may have"
    ),
    RefusalReason.ALL_WORKERS_BUSY: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "every worker is busy, and no more jobs may wait"
    ),
    RefusalReason.DEADLINE_TOO_SHORT: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "the image cannot be finished before the deadline of the call"
    ),
    RefusalReason.BROKER_FULL: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "the broker has as many jobs as it may have"
    ),
    RefusalReason.FRONTEND_FULL: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED, "this frontend has as many open jobs as it may have"
    ),
    RefusalReason.WORKERS_NOT_READY: _Meaning(
        StatusCode.UNAVAILABLE, "no worker is ready: they are loading a model, draining or out of order"
    ),
    RefusalReason.NO_WORKERS: _Meaning(StatusCode.UNAVAILABLE, "no worker is registered"),
    RefusalReason.BROKER_UNREACHABLE: _Meaning(StatusCode.UNAVAILABLE, "the broker does not answer"),
    RefusalReason.BROKER_DRAINING: _Meaning(StatusCode.UNAVAILABLE, "the broker is shutting down"),
    RefusalReason.FRONTEND_DRAINING: _Meaning(StatusCode.UNAVAILABLE, "this frontend is shutting down"),
    RefusalReason.IDEMPOTENCY_MISMATCH: _Meaning(
        StatusCode.INVALID_ARGUMENT,
        "another call with this idempotency key asked for another image",
        field=field_name(IDEMPOTENCY_KEY_METADATA),
    ),
    # These are of no job, or go from a worker to the broker; one that gets here is our bug.
    RefusalReason.VERSION_MISMATCH: _MISROUTED,
    RefusalReason.SUPERSEDED: _MISROUTED,
    RefusalReason.WORKER_BUSY: _MISROUTED,
    RefusalReason.WORKER_NOT_READY: _MISROUTED,
    RefusalReason.WORKER_DRAINING: _MISROUTED,
    RefusalReason.STALE_START: _MISROUTED,
}

_FAILURES: Final[Mapping[FailureCode, _Meaning]] = {
    # The client's means against it is a smaller image, not patience: hence no RetryInfo, ever.
    FailureCode.OUT_OF_MEMORY: _Meaning(
        StatusCode.RESOURCE_EXHAUSTED,
        "the image did not fit into a worker's device memory; a smaller one may",
    ),
    FailureCode.ENGINE_CRASHED: _Meaning(StatusCode.UNAVAILABLE, "the process that drew the image died"),
    FailureCode.ENGINE_HUNG: _Meaning(
        StatusCode.UNAVAILABLE, "the process that drew the image made no progress and was ended"
    ),
    FailureCode.DEVICE_POISONED: _Meaning(
        StatusCode.UNAVAILABLE, "the device that drew the image became unusable"
    ),
    FailureCode.POISON_JOB: _Meaning(
        StatusCode.INTERNAL, "the job ended two engine processes and is not tried again"
    ),
    FailureCode.WORKER_LOST: _Meaning(StatusCode.UNAVAILABLE, "the worker that drew the image was lost"),
    FailureCode.ENGINE_ERROR: _Meaning(StatusCode.INTERNAL, "the model failed to draw the image"),
    FailureCode.NON_FINITE_IMAGE: _Meaning(
        StatusCode.INTERNAL, "the model produced values that are no picture (NaN or infinity)"
    ),
    FailureCode.IMAGE_TOO_LARGE: _Meaning(
        StatusCode.INTERNAL, "the finished PNG is larger than the service can carry"
    ),
    FailureCode.DEADLINE_EXCEEDED: _Meaning(
        StatusCode.DEADLINE_EXCEEDED, "the time for this job was over before the image was finished"
    ),
    FailureCode.CANCELLED: _Meaning(StatusCode.CANCELLED, "the job was cancelled"),
}


def refused(end: JobRefused) -> Status:
    """The job was never accepted, or this frontend leaves before its end."""
    meaning = _REFUSALS[end.reason]
    text = f"{meaning.text} ({end.detail})" if end.detail else meaning.text
    details: list[Message] = []
    if meaning.field:
        details.append(_bad_request([(meaning.field, text)]))
    if end.retry_after_s is not None:
        details.append(RetryInfo(retry_delay=_duration(end.retry_after_s)))
        text = f"{text}; try again in {end.retry_after_s:.1f} s"
    return status(meaning.code, text, end.reason, details=details)


def given_up(end: JobGivenUp) -> Status:
    """The job was accepted, and ended without an image. `end.detail` stays in our own logs."""
    meaning = _FAILURES[end.code]
    tries = "1 attempt" if end.attempts == 1 else f"{end.attempts} attempts"
    return status(
        meaning.code, f"{meaning.text} ({tries})", end.code, metadata={"attempts": str(end.attempts)}
    )


def invalid_request(violations: Iterable[FieldViolation]) -> Status:
    """All that is wrong with a request at once."""
    messages = [(violation.field, violation.message) for violation in violations]
    text = "; ".join(message for _, message in messages)
    return status(StatusCode.INVALID_ARGUMENT, text, INVALID_REQUEST, details=[_bad_request(messages)])


def undecodable_request(message_name: str) -> Status:
    return status(
        StatusCode.INVALID_ARGUMENT, f"the request is not a valid {message_name} message", INVALID_REQUEST
    )


def internal_error() -> Status:
    """A bug of ours; what it was is in the log, not in the answer."""
    return status(StatusCode.INTERNAL, "the frontend failed to handle this call", INTERNAL_ERROR)


def status(
    code: StatusCode,
    text: str,
    reason: str,
    *,
    metadata: Mapping[str, str] | None = None,
    details: Iterable[Message] = (),
) -> Status:
    """A status with `ErrorInfo` and further details."""
    info = ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {})
    packed = []
    for detail in (info, *details):
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    number: int = code.value[0]
    return Status(code=number, message=text, details=packed)


def reason_of(failure: Status) -> str:
    """The machine-readable reason in a status of ours; empty if it has none."""
    info = ErrorInfo()
    return info.reason if failure.details and failure.details[0].Unpack(info) else ""


def of_job(failure: Status, job_id: str) -> Status:
    """The same status with the job's id in its `ErrorInfo`, so that a caller has something to quote."""
    named = Status()
    named.CopyFrom(failure)
    info = ErrorInfo()
    if named.details and named.details[0].Unpack(info):
        info.metadata[JOB_ID_FIELD] = job_id
        named.details[0].Pack(info)
    return named


def _bad_request(messages: Iterable[tuple[str, str]]) -> BadRequest:
    """Fields, and what is wrong with each."""
    violations = [BadRequest.FieldViolation(field=field, description=message) for field, message in messages]
    return BadRequest(field_violations=violations)


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
