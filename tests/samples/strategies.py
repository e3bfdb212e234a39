"""Hypothesis strategies for everything that may be on the wire."""

from dataclasses import fields
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from proto import messages as m
from proto.failures import FailureCode, RefusalReason

REPEATABLE = settings(max_examples=60, deadline=None, derandomize=True, database=None)
"""The same examples in every run: a red build is not a matter of luck."""

# A plain `text()` has lone surrogates, which no UTF-8 has.
characters = st.characters(exclude_categories=("Cs",))
ids = st.binary(min_size=16, max_size=16)
names = st.text(characters, min_size=1, max_size=20) | st.just("n" * 128)
texts = st.text(characters, max_size=20) | st.just("t" * 1024)
counts = st.integers(0, 2**63 - 1)
milliseconds = st.integers(0, 2**53)
readings_values = st.floats(0, allow_nan=False, allow_infinity=False)
seconds = st.floats(0, 1e6)
seeds = st.integers(0, 2**64 - 1)


def some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(strategy, max_size=3).map(tuple)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


parameters = st.builds(
    m.ImageParameters,
    height=st.integers(1, 8192),
    width=st.integers(1, 8192),
    steps=st.integers(1, 1000),
    guidance=readings_values,
    seed=seeds,
)
claims = st.builds(
    m.JobClaim,
    job_id=ids,
    key_fingerprint=names,
    parameters_digest=ids,
    idempotency_hash=optional(ids),
    detach=st.booleans(),
    remaining_ms=milliseconds,
    attempts=st.integers(0, 1000),
    crashes=st.integers(0, 1000),
)
traces = st.builds(
    m.TraceContext,
    traceparent=st.text(characters, min_size=55, max_size=55),
    tracestate=st.just("") | st.just("s" * m.MAX_TRACESTATE_CHARACTERS),
)
running = st.builds(
    m.RunningExecution,
    execution_id=ids,
    claim=claims,
    phase=st.sampled_from(m.JobPhase),
    step=counts,
    steps=counts,
)
held = st.builds(
    m.HeldOutcome,
    execution_id=ids,
    claim=claims,
    failure=optional(st.sampled_from(FailureCode)),
    size_bytes=counts,
)
gpus = st.builds(
    m.GpuReading,
    uuid=names,
    name=texts,
    memory_used_mb=readings_values,
    memory_total_mb=readings_values,
    utilization_percent=readings_values,
    temperature_celsius=readings_values,
)
readings = st.builds(
    m.Readings,
    cpu_percent=readings_values,
    ram_used_mb=readings_values,
    ram_total_mb=readings_values,
    gpus=some(gpus),
    age_ms=milliseconds,
)
cards = st.builds(m.ModelCard, engine=names, name=texts, precision=texts, device=texts, warning=texts)
worker_reports = st.builds(
    m.WorkerReport,
    worker_id=names,
    incarnation=ids,
    seq=counts,
    host=names,
    phase=st.sampled_from(m.WorkerPhase),
    activity=texts,
    percent=st.integers(0, 100),
    model=optional(cards),
    running=optional(running),
    held=some(held),
    readings=optional(readings),
    engine_restarts=counts,
)
worker_views = st.builds(
    m.WorkerView,
    broker_id=names,
    epoch=ids,
    echo=counts,
    heartbeat_interval_ms=milliseconds,
    cancel=some(ids),
    release=some(ids),
    resend=some(ids),
)
prompts = st.text(characters, max_size=100).map(str.encode) | st.just(b"p" * m.MAX_PROMPT_BYTES)
starts = st.builds(
    m.Start,
    epoch=ids,
    incarnation=ids,
    execution_id=ids,
    claim=claims,
    parameters=parameters,
    trace=optional(traces),
    body=prompts,
)
submits = st.builds(
    m.Submit,
    frontend_id=names,
    incarnation=ids,
    seq=counts,
    claim=claims,
    parameters=parameters,
    trace=optional(traces),
    accepted=st.booleans(),
    execution_id=optional(ids),
    key_job_limit=st.integers(1, 1000),
    key_queue_share=st.floats(0.001, 1.0),
    body=prompts,
)
_outcome_fields = {
    "worker_id": names,
    "incarnation": ids,
    "seq": counts,
    "execution_id": ids,
    "job_id": ids,
    "attempts": st.integers(0, 1000),
    "crashes": st.integers(0, 1000),
}
images = st.builds(
    m.Outcome,
    **_outcome_fields,
    image=st.builds(m.ImageMade, inference_time_s=seconds, seed=seeds, steps_time_s=optional(seconds)),
    body=st.binary(min_size=1, max_size=200),
)
failures = st.builds(
    m.Outcome,
    **_outcome_fields,
    failure=st.builds(m.JobFailed, code=st.sampled_from(FailureCode), detail=texts),
)
frontend_reports = st.builds(m.FrontendReport, frontend_id=names, incarnation=ids, seq=counts, jobs=some(ids))
statuses = st.builds(
    m.JobStatus,
    job_id=ids,
    state=st.sampled_from(m.JobState),
    execution_id=optional(ids),
    attempts=st.integers(0, 1000),
    crashes=st.integers(0, 1000),
)
frontend_views = st.builds(
    m.FrontendView,
    broker_id=names,
    epoch=ids,
    echo=counts,
    heartbeat_interval_ms=milliseconds,
    ready_workers=counts,
    draining=st.booleans(),
    jobs=some(statuses),
)
refusals = st.builds(
    m.Refuse,
    reason=st.sampled_from(RefusalReason),
    detail=texts,
    job_id=optional(ids),
    execution_id=optional(ids),
    retry_after_ms=optional(milliseconds),
)
leaves = st.builds(m.Leave, incarnation=ids, seq=counts, reason=texts)
snapshot_requests = st.builds(m.SnapshotRequest, seq=counts)
distributions = st.builds(
    m.Distribution, bounds=some(readings_values), counts=some(counts), sum=readings_values
)
snapshots = st.builds(
    m.Snapshot,
    broker_id=names,
    epoch=ids,
    echo=counts,
    in_flight=counts,
    queued=counts,
    completed=counts,
    failed=counts,
    cancelled=counts,
    rejected=st.dictionaries(names, counts, max_size=20),
    workers=some(st.builds(m.WorkerRow, report=worker_reports, state=names, report_age_ms=milliseconds)),
    queue_wait_s=optional(distributions),
    step_s=optional(distributions),
)

BY_TYPE: dict[type[m.Message], st.SearchStrategy[Any]] = {
    m.WorkerReport: worker_reports,
    m.WorkerView: worker_views,
    m.FrontendReport: frontend_reports,
    m.FrontendView: frontend_views,
    m.Submit: submits,
    m.Start: starts,
    m.Outcome: images | failures,
    m.Refuse: refusals,
    m.Leave: leaves,
    m.SnapshotRequest: snapshot_requests,
    m.Snapshot: snapshots,
}
messages = st.sampled_from(sorted(BY_TYPE, key=lambda kind: kind.__name__)).flatmap(BY_TYPE.__getitem__)


def field_names(kind: type[m.Message]) -> set[str]:
    return {field.name for field in fields(kind)}
