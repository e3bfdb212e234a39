"""Contexts from outside and for others, what is lost, and what it takes to begin."""

import logging
import subprocess
import sys
import threading
import time

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import TraceState
from samples.recorded_spans import (
    CONTEXT,
    PARENT_ID,
    TRACE_ID,
    RecordedTracing,
    facts_of,
    has_failed,
    lasted_s,
)

from proto import spans
from proto.messages import TraceContext
from proto.spans import Complaints, Delivery, SpanQueue, Tracing, resource_of
from proto.tracing import CannotTrace, tracing_if

LIMIT_S = 60.0
VARIABLES = ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_EXPORTER_OTLP_PROTOCOL")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


class NoCollector(SpanExporter):
    def export(self, _spans):
        return SpanExportResult.FAILURE


class StuckCollector(SpanExporter):
    def __init__(self):
        self.asked = threading.Event()
        self.may_go_on = threading.Event()

    def export(self, _spans):
        self.asked.set()
        self.may_go_on.wait(LIMIT_S)
        return SpanExportResult.FAILURE


def delivered_by(exporter):
    return Tracing(TracerProvider(shutdown_on_exit=False), SpanQueue(Delivery(exporter, Complaints())))


# --- Contexts ----------------------------------------------------------------------------------


def test_a_span_below_a_context_has_its_trace_and_lasts_as_long_as_was_told():
    recorded = RecordedTracing()
    span = recorded.tracing.below(CONTEXT, "outer", 1000.0, {"flux.n": 1})
    span.child("inner", 1000.5).end(1000.75)
    span.end(1002.0, error="WORKER_LOST")
    inner, outer = recorded.spans()
    assert f"{outer.context.trace_id:032x}" == span.trace_id == TRACE_ID
    assert f"{outer.parent.span_id:016x}" == PARENT_ID
    assert inner.parent.span_id == outer.context.span_id
    assert (lasted_s(outer), lasted_s(inner)) == (2.0, 0.25)
    assert (inner.start_time - outer.start_time) == 500_000_000
    assert facts_of(outer) == {"n": 1, "error.type": "WORKER_LOST"}
    assert has_failed(outer)
    assert not has_failed(inner)


def test_a_context_for_others_is_of_the_span_itself():
    recorded = RecordedTracing()
    span = recorded.tracing.below(CONTEXT, "outer", 1.0, {})
    context = span.context
    recorded.tracing.below(context, "elsewhere", 1.5, {}).end(1.6)
    span.end(2.0)
    elsewhere, outer = recorded.spans()
    assert context.tracestate == "vendor=1"
    assert elsewhere.parent.span_id == outer.context.span_id


def test_an_instant_is_told_by_the_wall_clock():
    recorded = RecordedTracing()
    before = time.time_ns()
    recorded.tracing.below(CONTEXT, "now", time.monotonic(), {}).end(time.monotonic())
    after = time.time_ns()
    (span,) = recorded.spans()
    assert before - 10_000_000 <= span.start_time <= span.end_time <= after + 10_000_000


def test_what_is_not_sampled_has_no_context_for_others():
    recorded = RecordedTracing(ALWAYS_OFF)
    span = recorded.tracing.of_call((), "call", 1.0, {})
    assert span.context is None
    span.end(2.0)
    assert recorded.spans() == []


def test_a_caller_decides_whether_its_call_is_sampled():
    recorded = RecordedTracing()
    unsampled = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-00"),)
    assert recorded.tracing.of_call(unsampled, "call", 1.0, {}).context is None
    sampled = (("traceparent", CONTEXT.traceparent), ("tracestate", "a=1,b=2"))
    context = recorded.tracing.of_call(sampled, "call", 1.0, {}).context
    assert context.traceparent.split("-")[1] == TRACE_ID
    assert context.tracestate == "a=1,b=2"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("traceparent", ""),),
        (("traceparent", "nonsense"),),
        (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}"),),
        (("traceparent", f"00-{'0' * 32}-{PARENT_ID}-01"),),
        (("traceparent", f"ff-{TRACE_ID}-{PARENT_ID}-01"),),
        (("traceparent", CONTEXT.traceparent + "x" * 600),),
        (("traceparent", CONTEXT.traceparent), ("traceparent", CONTEXT.traceparent)),
        (("traceparent", CONTEXT.traceparent.encode()),),
    ],
)
def test_a_call_without_a_proper_parent_begins_a_trace(metadata):
    recorded = RecordedTracing()
    recorded.tracing.of_call(metadata, "call", 1.0, {}).end(2.0)
    (span,) = recorded.spans()
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE_ID


def test_a_state_that_is_too_long_is_left_out():
    recorded = RecordedTracing()
    state = ",".join(f"k{n}={'v' * 40}" for n in range(20))
    call = (("traceparent", CONTEXT.traceparent), ("tracestate", state))
    assert recorded.tracing.of_call(call, "call", 1.0, {}).context.tracestate == ""


def test_a_context_that_is_none_begins_a_trace():
    """Of 55 characters, and no more than that is known of it when it arrives."""
    recorded = RecordedTracing()
    recorded.tracing.below(TraceContext(traceparent="x" * 55), "lost", 1.0, {}).end(2.0)
    (span,) = recorded.spans()
    assert span.parent is None


def test_a_process_has_a_name_which_the_environment_may_replace(monkeypatch):
    attributes = resource_of("broker", "b-1").attributes
    assert attributes["service.name"] == "flux-broker"
    assert attributes["service.instance.id"] == "b-1"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "images")
    assert resource_of("broker", "b-1").attributes["service.name"] == "images"


# --- What is lost ------------------------------------------------------------------------------


def test_spans_that_nobody_takes_are_counted_and_logged_once():
    with structlog.testing.capture_logs() as logged:
        tracing = delivered_by(NoCollector())
        for _ in range(3):
            tracing.below(CONTEXT, "lost", 1.0, {}).end(2.0)
        tracing.close()
    assert tracing.dropped == 3
    assert [line["event"] for line in logged] == ["spans are lost", "spans were not sent"]
    assert logged[1]["spans"] == 3


class CollectorInTrouble(SpanExporter):
    """A caller sends nonsense while an export is under way."""

    def export(self, _spans):
        TraceState.from_header(["nonsense of a caller"])
        logging.getLogger("opentelemetry.exporter.otlp").error("no route to the collector")
        return SpanExportResult.FAILURE


def test_why_spans_are_lost_is_no_word_of_a_caller():
    with structlog.testing.capture_logs() as logged:
        tracing = delivered_by(CollectorInTrouble())
        tracing.below(CONTEXT, "lost", 1.0, {}).end(2.0)
        tracing.close()
    assert logged[0]["why"] == "no route to the collector"


def test_nobody_waits_for_a_collector_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(spans, "FLUSH_S", 0.01)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "2")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    collector = StuckCollector()
    tracing = delivered_by(collector)
    tracing.below(CONTEXT, "taken", 1.0, {}).end(2.0)
    assert collector.asked.wait(LIMIT_S)
    for _ in range(5):
        tracing.below(CONTEXT, "waiting", 1.0, {}).end(2.0)
    assert tracing.dropped >= 3, "all but those that fit into the queue"
    with structlog.testing.capture_logs() as logged:
        tracing.close()
    collector.may_go_on.set()
    assert [line["spans"] for line in logged] == [6]


# --- Beginning ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "'grpc': expected is http/protobuf"),
        ("OTEL_TRACES_SAMPLER", "sometimes", "sometimes"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "many"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "soon"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "tight", "tight"),
    ],
)
def test_a_variable_without_a_meaning_is_named(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    with pytest.raises(CannotTrace, match=told), tracing_if("broker", "b", enabled=True):
        pass


def test_a_component_that_does_not_trace_has_no_tracing():
    with tracing_if("broker", "b", enabled=False) as tracing:
        assert tracing is None


@pytest.mark.parametrize(
    ("module", "program"),
    [("broker.__main__", "broker"), ("gpu_worker.process", "gpu_worker"), ("frontend.__main__", "frontend")],
)
def test_without_the_libraries_tracing_is_a_clear_error(module, program):
    code = (
        f"import sys; sys.modules['opentelemetry'] = None; from {module} import main;"
        " sys.exit(main(['--tracing']))"
    )
    environment = {"API_KEYS": "a", "FLUX_WORKER_ENGINE": "fake", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env=environment,
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 78
    assert line.startswith(f"{program}: tracing: ")
    assert line.endswith("pip install -r requirements/tracing.txt")
