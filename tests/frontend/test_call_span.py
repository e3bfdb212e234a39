"""The span of a call, from its metadata to its status."""

import grpc
import pytest
from samples.recorded_spans import CONTEXT, TRACE_ID, RecordedTracing, facts_of, has_failed

from frontend.actions import JobGivenUp, JobRefused
from proto.failures import FailureCode, RefusalReason


@pytest.fixture
def recorded():
    return RecordedTracing()


@pytest.fixture
async def traced(start_frontend, recorded):
    async with start_frontend(tracing=recorded.tracing) as running:
        yield running


async def call_ended(log_lines):
    """The client of a call that fails hears it first."""
    while (await log_lines.get())["event"] != "call ended":
        pass


async def test_a_job_is_opened_below_the_span_of_its_call(traced, recorded):
    traced_call = (*traced.key, ("traceparent", CONTEXT.traceparent), ("tracestate", CONTEXT.tracestate))
    await traced.generate(metadata=traced_call)
    (opened,) = traced.cluster.draws
    (span,) = recorded.spans()
    assert f"{span.parent.span_id:016x}" == CONTEXT.traceparent.split("-")[2]
    assert opened.trace.traceparent == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert opened.trace.tracestate == "vendor=1"
    assert (span.name, span.kind.name) == ("imagegen.ImageGen/Generate", "SERVER")
    assert facts_of(span) == {
        "rpc.system": "grpc",
        "rpc.service": "imagegen.ImageGen",
        "rpc.method": "Generate",
        "rpc.grpc.status_code": 0,
        "job_id": opened.job_id.hex(),
        "width": 48,
        "height": 64,
        "steps": 4,
    }


async def test_a_call_that_is_not_sampled_goes_on_without_a_context(traced, recorded):
    unsampled = f"{CONTEXT.traceparent[:-1]}0"
    await traced.generate(metadata=(*traced.key, ("traceparent", unsampled)))
    (opened,) = traced.cluster.draws
    assert opened.trace is None
    assert recorded.spans() == []


@pytest.mark.parametrize(
    ("end", "code", "error"),
    [
        (
            JobRefused(reason=RefusalReason.ALL_WORKERS_BUSY, detail="", retry_after_s=1.0),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            None,
        ),
        (
            JobGivenUp(code=FailureCode.WORKER_LOST, detail="", attempts=3),
            grpc.StatusCode.UNAVAILABLE,
            "WORKER_LOST",
        ),
        (RuntimeError("a bug"), grpc.StatusCode.INTERNAL, "INTERNAL_ERROR"),
    ],
)
async def test_a_failure_is_an_error_where_the_service_is_to_blame(
    traced, recorded, log_lines, end, code, error
):
    traced.cluster.end = end
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await traced.generate()
    assert raised.value.code() is code
    await call_ended(log_lines)
    (span,) = recorded.spans()
    facts = facts_of(span)
    assert facts["rpc.grpc.status_code"] == code.value[0]
    assert facts.get("error.type") == error
    assert has_failed(span) is (error is not None)


async def test_a_call_that_asks_for_what_cannot_be_is_traced_without_a_job(traced, recorded, log_lines):
    with pytest.raises(grpc.aio.AioRpcError):
        await traced.generate(height=0)
    await call_ended(log_lines)
    (span,) = recorded.spans()
    assert facts_of(span)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "job_id" not in facts_of(span)


async def test_log_lines_of_a_traced_call_name_its_trace(traced, recorded, log_lines):
    await traced.generate()
    line = await log_lines.get()
    (span,) = recorded.spans()
    assert (line["event"], line["trace_id"]) == ("call ended", f"{span.context.trace_id:032x}")


async def test_a_frontend_that_does_not_trace_ignores_the_callers_context(start_frontend):
    async with start_frontend() as plain:
        await plain.generate(metadata=(*plain.key, ("traceparent", CONTEXT.traceparent)))
        (opened,) = plain.cluster.draws
        assert opened.trace is None
