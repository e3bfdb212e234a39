"""Why there is no image: the codes that cross the wire.

A refusal comes before a job was accepted, a failure ends an accepted one. The frontend alone
translates both into gRPC statuses (`frontend/errors.py`).
"""

from enum import StrEnum


class RefusalReason(StrEnum):
    """Why a job was not taken, or a peer not listened to."""

    # From the broker to a frontend, or inside the frontend; public as `ErrorInfo.reason`.
    CLIENT_BUSY = "CLIENT_BUSY"
    """Its API key has as many active jobs as it may have, or the job as many waiters."""
    CLIENT_QUEUE_FULL = "CLIENT_QUEUE_FULL"
    """Its API key has its share of the queue waiting."""
    ALL_WORKERS_BUSY = "ALL_WORKERS_BUSY"
    """Every worker is busy, and no more jobs may wait."""
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    """It is not expected to end in the time that it has."""
    WORKERS_NOT_READY = "WORKERS_NOT_READY"
    """There are workers, but none that takes jobs."""
    NO_WORKERS = "NO_WORKERS"
    """No worker is registered."""
    BROKER_UNREACHABLE = "BROKER_UNREACHABLE"
    """No broker answers the frontend."""
    BROKER_DRAINING = "BROKER_DRAINING"
    """The broker is about to end."""
    BROKER_FULL = "BROKER_FULL"
    """The broker knows as many peers or jobs as it may."""
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    """Its idempotency key is that of a call with another prompt or other parameters."""
    FRONTEND_FULL = "FRONTEND_FULL"
    """The frontend has as many open calls as it may have."""
    FRONTEND_DRAINING = "FRONTEND_DRAINING"
    """The frontend is about to end."""
    # From a worker to the broker: why a START was not begun.
    WORKER_BUSY = "WORKER_BUSY"
    """It runs another execution."""
    WORKER_NOT_READY = "WORKER_NOT_READY"
    """It has no engine process that is ready."""
    WORKER_DRAINING = "WORKER_DRAINING"
    """It is about to end."""
    STALE_START = "STALE_START"
    """Meant for another life of the worker, or sent by another one of the broker."""
    # From the broker to a peer as a whole.
    VERSION_MISMATCH = "VERSION_MISMATCH"
    """It speaks another version of the protocol."""
    SUPERSEDED = "SUPERSEDED"
    """This life of the worker is over: a younger process has its name, or it had left."""


class FailureCode(StrEnum):
    """Why an accepted job ended without an image."""

    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """The device had too little memory for this job."""
    ENGINE_CRASHED = "ENGINE_CRASHED"
    """The engine process died; its parent lives and says so."""
    ENGINE_HUNG = "ENGINE_HUNG"
    """The engine process made no progress within its phase's limit and was killed."""
    DEVICE_POISONED = "DEVICE_POISONED"
    """The engine process found its device unusable, and ended itself: only a new process can help."""
    POISON_JOB = "POISON_JOB"
    """It was the end of two engine processes: the broker does not try it on a third."""
    ENGINE_ERROR = "ENGINE_ERROR"
    """The engine raised an error, and goes on."""
    NON_FINITE_IMAGE = "NON_FINITE_IMAGE"
    """The model produced NaN or infinity: a failure, never a black image."""
    CANCELLED = "CANCELLED"
    """Stopped on request."""
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    """Stopped because its time was over."""
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    """The PNG exceeds what one frame may hold."""
    WORKER_LOST = "WORKER_LOST"
    """Its worker is gone, or what it had drawn is; or no worker finished it in its attempts and its time."""


ENGINE_DEATHS = frozenset({FailureCode.ENGINE_CRASHED, FailureCode.ENGINE_HUNG, FailureCode.DEVICE_POISONED})
"""Failures that cost the engine process its life. They count as crashes of the job."""

ENGINE_REPLACED = ENGINE_DEATHS | {FailureCode.OUT_OF_MEMORY}
"""Failures after which the worker has no engine process, or is about to have another one."""

RETRYABLE_FAILURES = frozenset(
    {
        FailureCode.OUT_OF_MEMORY,
        FailureCode.ENGINE_CRASHED,
        FailureCode.ENGINE_HUNG,
        FailureCode.DEVICE_POISONED,
        FailureCode.WORKER_LOST,
    }
)
"""Failures of the place, not of the job: another attempt may succeed."""
