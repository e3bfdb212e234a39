"""Tracing as components have it, with the spans in memory instead of at a collector."""

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler
from opentelemetry.trace import StatusCode

from proto.messages import TraceContext
from proto.spans import Complaints, Delivery, SpanQueue, Tracing, resource_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
CONTEXT = TraceContext(traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01", tracestate="vendor=1")


class RecordedTracing:
    def __init__(self, sampler: Sampler | None = None) -> None:
        self._memory = InMemorySpanExporter()
        provider = TracerProvider(
            sampler=sampler, resource=resource_of("test", "test-1"), shutdown_on_exit=False
        )
        self.tracing = Tracing(provider, SpanQueue(Delivery(self._memory, Complaints())))

    def spans(self) -> list[ReadableSpan]:
        """All, in the order in which they ended. Nothing is recorded from then on."""
        self.tracing.close()
        return list(self._memory.get_finished_spans())


def facts_of(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes without the prefix of ours."""
    return {name.removeprefix("flux."): value for name, value in (span.attributes or {}).items()}


def has_failed(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def lasted_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9
