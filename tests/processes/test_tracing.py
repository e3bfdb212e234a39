"""One trace for each job, through all processes, at a collector."""

from collections.abc import Iterator

import pytest
from processes.stack import Stack, content_of, until
from samples.otlp_receiver import OtlpReceiver, ReceivedSpan
from samples.recorded_spans import CONTEXT, PARENT_ID, TRACE_ID


@pytest.fixture(scope="module")
def collector() -> Iterator[OtlpReceiver]:
    with OtlpReceiver.listening() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stack(collector: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        environment.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        with Stack(tmp_path_factory.mktemp("stack"), tracing=True) as running:
            yield running.start()


def until_traced(collector: OtlpReceiver, job_id: str, *names: str) -> list[ReceivedSpan]:
    """The job's trace, once it has spans of these names."""

    def look() -> list[ReceivedSpan] | None:
        trace = collector.trace_of(job_id)
        return trace if set(names) <= {span.name for span in trace} else None

    return until(f"the trace of {job_id} has {names}", look)


def named(trace: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in trace if span.name == name]


def test_a_job_is_one_trace_from_its_caller_to_its_png(stack: Stack, collector: OtlpReceiver) -> None:
    client = stack.client()
    client.metadata += (("traceparent", CONTEXT.traceparent),)
    job_id = content_of(client.draw("a heath at night", steps=3, width=80)).job_id.hex()
    trace = until_traced(collector, job_id, "imagegen.ImageGen/Generate", "delivering", "execution")
    (call,) = named(trace, "imagegen.ImageGen/Generate")
    (execution,) = named(trace, "execution")
    assert {span.trace_id for span in trace} == {TRACE_ID}
    assert (call.parent_id, call.facts["rpc.grpc.status_code"]) == (PARENT_ID, 0)
    assert sorted((span.name, span.service) for span in trace if span.parent_id == call.span_id) == [
        ("delivering", "flux-broker"),
        ("dispatched", "flux-broker"),
        ("execution", "flux-worker"),
        ("queued", "flux-broker"),
    ]
    inside = [span for span in trace if span.parent_id == execution.span_id]
    assert [span.name for span in inside] == ["text", "step", "step", "step", "decode", "png"]
    assert [span.facts["step"] for span in named(trace, "step")] == [1, 2, 3]
    assert len(trace) == 1 + 4 + len(inside), "and nothing else"
    for span in inside:
        assert execution.begun_ns <= span.begun_ns <= span.ended_ns <= execution.ended_ns
    assert "heath" not in str(trace)
    assert "client1" not in str(trace)


def test_a_broker_that_is_killed_costs_its_open_spans_and_not_the_trace(
    stack: Stack, collector: OtlpReceiver
) -> None:
    with stack.held():
        call = stack.client().begin("a fen", steps=2)
        running = stack.until_running()
        stack.broker.kill()
        stack.broker.start()
        stack.broker.until_event("execution adopted", job_id=running.job_id)
    image = content_of(call.image())
    trace = until_traced(
        collector, running.job_id, "imagegen.ImageGen/Generate", "returned", "delivering", "execution"
    )
    assert len({span.trace_id for span in trace}) == 1
    known = {span.span_id for span in trace}
    assert [span.name for span in trace if span.parent_id not in known] == ["imagegen.ImageGen/Generate"]
    (dispatched,) = named(trace, "dispatched")
    (execution,) = named(trace, "execution")
    assert dispatched.facts["execution_id"] == execution.facts["execution_id"] == image.execution_id.hex()


def test_the_log_names_the_trace_of_a_job(stack: Stack, collector: OtlpReceiver) -> None:
    job_id = content_of(stack.client().draw("a marsh")).job_id.hex()
    (trace_id,) = {span.trace_id for span in until_traced(collector, job_id, "imagegen.ImageGen/Generate")}
    for component, event in (
        (stack.frontend, "call ended"),
        (stack.broker, "job completed"),
        (stack.workers["worker-1"], "job ended"),
    ):
        assert component.until_event(event, job_id=job_id)["trace_id"] == trace_id
