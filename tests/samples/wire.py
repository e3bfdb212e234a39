"""Small valid messages, for tests that care about a field or two of them."""

import dataclasses
from typing import Any

from proto.messages import (
    FrontendReport,
    FrontendView,
    HeldOutcome,
    ImageMade,
    ImageParameters,
    JobClaim,
    JobFailed,
    JobPhase,
    Leave,
    ModelCard,
    Outcome,
    Readings,
    Refuse,
    RunningExecution,
    SnapshotRequest,
    Start,
    Submit,
    WorkerPhase,
    WorkerReport,
    WorkerView,
)

EPOCH = b"epoch".ljust(16, b".")
PARAMETERS = ImageParameters(height=64, width=64, steps=4, guidance=3.5, seed=7)
CARD = ModelCard(engine="fake", name="fake", precision="none", device="none")
READINGS = Readings(cpu_percent=10.0, ram_used_mb=100.0, ram_total_mb=1000.0)


def identifier(name: object) -> bytes:
    """16 bytes that can be read in a failure message."""
    return str(name).encode()[:16].ljust(16, b".")


def claim(job: object = "job", **changes: Any) -> JobClaim:
    fields: dict[str, Any] = {
        "job_id": identifier(job),
        "key_fingerprint": "key",
        "parameters_digest": identifier("digest"),
        "remaining_ms": 60_000,
    }
    return JobClaim(**{**fields, **changes})


def submit(job: object = "job", **changes: Any) -> Submit:
    """What belongs to the claim changes that, everything else the message; `key` is the fingerprint."""
    renamed = {"key": "key_fingerprint", "digest": "parameters_digest", "idempotency": "idempotency_hash"}
    names = ("key", "digest", "idempotency", "detach", "remaining_ms", "attempts", "crashes")
    in_claim = {renamed.get(name, name): changes.pop(name) for name in names if name in changes}
    fields: dict[str, Any] = {
        "frontend_id": "frontend",
        "incarnation": identifier("frontend"),
        "seq": 1,
        "claim": claim(job, **in_claim),
        "parameters": PARAMETERS,
        "body": b"a cat",
    }
    return Submit(**{**fields, **changes})


def frontend_report(*jobs: object, **changes: Any) -> FrontendReport:
    fields: dict[str, Any] = {
        "frontend_id": "frontend",
        "incarnation": identifier("frontend"),
        "seq": 1,
        "jobs": tuple(identifier(job) for job in jobs),
    }
    return FrontendReport(**{**fields, **changes})


def running(
    execution: bytes, job: object = "job", step: int = 0, steps: int = 4, **changes: Any
) -> RunningExecution:
    fields: dict[str, Any] = {"claim": claim(job), "phase": JobPhase.STEP, "step": step, "steps": steps}
    return RunningExecution(execution_id=execution, **{**fields, **changes})


def held(execution: bytes, job: object = "job", **changes: Any) -> HeldOutcome:
    fields: dict[str, Any] = {"claim": claim(job), "failure": None, "size_bytes": 100}
    return HeldOutcome(execution_id=execution, **{**fields, **changes})


def worker_report(worker: str = "worker", **changes: Any) -> WorkerReport:
    fields: dict[str, Any] = {
        "worker_id": worker,
        "incarnation": identifier(f"{worker} 1"),
        "seq": 1,
        "host": "host",
        "phase": WorkerPhase.READY,
    }
    return WorkerReport(**{**fields, **changes})


def image_outcome(execution: bytes, job: object = "job", worker: str = "worker", **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "worker_id": worker,
        "incarnation": identifier(f"{worker} 1"),
        "seq": 10,
        "execution_id": execution,
        "job_id": identifier(job),
        "attempts": 1,
        "crashes": 0,
        "image": ImageMade(inference_time_s=1.0, seed=7),
        "body": b"png",
    }
    return Outcome(**{**fields, **changes})


def failure_outcome(execution: bytes, failure: JobFailed, job: object = "job", **changes: Any) -> Outcome:
    return image_outcome(execution, job, **{"image": None, "failure": failure, "body": b"", **changes})


def start(execution: object = "execution", job: object = "job", **changes: Any) -> Start:
    fields: dict[str, Any] = {
        "epoch": EPOCH,
        "incarnation": identifier("worker 1"),
        "execution_id": identifier(execution),
        "claim": claim(job),
        "parameters": PARAMETERS,
        "body": b"a cat",
    }
    return Start(**{**fields, **changes})


def worker_view(**changes: Any) -> WorkerView:
    fields: dict[str, Any] = {
        "broker_id": "broker",
        "epoch": EPOCH,
        "echo": 1,
        "heartbeat_interval_ms": 1000,
    }
    return WorkerView(**{**fields, **changes})


def frontend_view(**changes: Any) -> FrontendView:
    fields: dict[str, Any] = {
        "broker_id": "broker",
        "epoch": EPOCH,
        "echo": 1,
        "heartbeat_interval_ms": 1000,
        "ready_workers": 1,
    }
    return FrontendView(**{**fields, **changes})


def leave(incarnation: bytes, **changes: Any) -> Leave:
    return Leave(**{"incarnation": incarnation, "seq": 99, "reason": "test", **changes})


def refuse(reason: Any, **changes: Any) -> Refuse:
    return Refuse(reason=reason, **changes)


def snapshot_request(seq: int = 1) -> SnapshotRequest:
    return SnapshotRequest(seq=seq)


def changed(message: Any, **changes: Any) -> Any:
    return dataclasses.replace(message, **changes)
