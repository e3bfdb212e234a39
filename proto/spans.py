"""The spans of one component, and their way to a collector. The only module that knows OpenTelemetry.

It is configured by the library's own variables (`OTEL_…`). Instants are of the monotonic clock, in seconds;
what leaves has this host's wall clock, read when a span begins.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import (
    OTEL_BSP_MAX_QUEUE_SIZE,
    OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL,
)
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span as LibrarySpan
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proto.messages import MAX_TRACESTATE_CHARACTERS, TraceContext
from proto.rarely import Rarely
from proto.tracing import CannotTrace

FLUSH_S: Final = 2.0
"""For the last spans of a process that ends."""
PROTOCOL: Final = "http/protobuf"
"""OTLP over HTTP: the one over gRPC would bring gRPC to hosts that have no other use for it."""
QUEUED_SPANS: Final = 2048
"""That wait for the collector, by OpenTelemetry's default; one more costs the oldest."""

CLOCK_WAS_SET_NS: Final = 1_000_000
"""Less is how exactly the two clocks can be compared: what follows at once shall not begin before."""

_OF_CALLERS: Final = "opentelemetry.trace."
"""The loggers that quote a context which a caller has sent."""

Attributes = Mapping[str, str | int | float | bool]

log = structlog.get_logger()
_propagator: Final = TraceContextTextMapPropagator()


class Span:
    """Something that takes time, from its beginning on."""

    def __init__(self, tracer: Tracer, span: LibrarySpan, wall_minus_monotonic_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset_ns = wall_minus_monotonic_ns

    @property
    def trace_id(self) -> str:
        """Hexadecimal, as collectors show it."""
        return format_trace_id(self._span.get_span_context().trace_id)

    @property
    def context(self) -> TraceContext | None:
        """For spans of others below this one; None if it is not sampled."""
        if not self._span.is_recording():
            return None
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, set_span_in_context(self._span))
        tracestate = carrier.get("tracestate", "")
        return TraceContext(
            traceparent=carrier["traceparent"],
            tracestate=tracestate if len(tracestate) <= MAX_TRACESTATE_CHARACTERS else "",
        )

    def child(self, name: str, at: float, attributes: Attributes | None = None) -> "Span":
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, attributes=attributes, start_time=self._wall_ns(at))
        return Span(self._tracer, span, self._offset_ns)

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def end(self, at: float, error: str = "") -> None:
        """`error` is the code of a failure."""
        if error:
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._wall_ns(at))

    def _wall_ns(self, at: float) -> int:
        return round(at * 1e9) + self._offset_ns


class Tracing:
    """Begins spans, and has them sent by a thread of its own: nobody waits for a collector."""

    def __init__(self, provider: TracerProvider, queue: "SpanQueue") -> None:
        provider.add_span_processor(queue)
        self._provider = provider
        self._queue = queue
        self._tracer = provider.get_tracer("flux-server")
        self._offset_ns = 0

    @classmethod
    def exporting(cls, component: str, instance: str) -> Self:
        """To the collector that the environment names.

        Raises:
            CannotTrace: a variable has no meaning.
        """
        for name in (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL):
            if os.environ.get(name, PROTOCOL) != PROTOCOL:
                raise CannotTrace(f"{name}: {os.environ[name]!r}: expected is {PROTOCOL}")
        complaints = Complaints()
        try:
            queue = SpanQueue(Delivery(OTLPSpanExporter(), complaints))
            # At exit it would wait as long as the library likes.
            provider = TracerProvider(resource=resource_of(component, instance), shutdown_on_exit=False)
        except (OSError, ValueError) as error:
            raise CannotTrace(f"tracing: {error}") from error
        if complaints.first:
            raise CannotTrace(f"tracing: {complaints.first}")
        return cls(provider, queue)

    @property
    def dropped(self) -> int:
        """Spans that no collector got."""
        return self._queue.dropped

    def below(self, context: TraceContext, name: str, at: float, attributes: Attributes) -> Span:
        carrier = {"traceparent": context.traceparent, "tracestate": context.tracestate}
        return self._begun(name, _propagator.extract(carrier), at, attributes, SpanKind.INTERNAL)

    def of_call(
        self, metadata: Iterable[tuple[str, str | bytes]], name: str, at: float, attributes: Attributes
    ) -> Span:
        """Below the caller's own span, if the metadata of the call name one."""
        carrier: dict[str, list[str]] = {}
        for key, value in metadata:
            if isinstance(value, str):
                carrier.setdefault(key, []).append(value)
        # Of several parents none is the right one.
        parent = _propagator.extract(carrier) if len(carrier.get("traceparent", ())) == 1 else Context()
        return self._begun(name, parent, at, attributes, SpanKind.SERVER)

    def _begun(self, name: str, parent: Context, at: float, attributes: Attributes, kind: SpanKind) -> Span:
        offset_ns = _wall_minus_monotonic_ns()
        if abs(offset_ns - self._offset_ns) > CLOCK_WAS_SET_NS:
            self._offset_ns = offset_ns
        start_ns = round(at * 1e9) + self._offset_ns
        span = self._tracer.start_span(name, parent, kind, attributes, start_time=start_ns)
        return Span(self._tracer, span, self._offset_ns)

    def close(self) -> None:
        """Send what is left, for `FLUSH_S` at most."""
        # The library's own limits hold for each of several steps.
        closing = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        closing.start()
        closing.join(FLUSH_S)
        if self._queue.unsent:
            log.warning("spans were not sent", spans=self._queue.unsent)


def _wall_minus_monotonic_ns() -> int:
    """Of three readings the one that was interrupted for the shortest time."""
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(3)]
    before, wall, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return wall - (before + after) // 2


def resource_of(component: str, instance: str) -> Resource:
    """Which process the spans are of; what the environment says of it comes first."""
    told = OTELResourceDetector().detect().attributes
    ours = {"service.name": f"flux-{component}", "service.instance.id": instance}
    return Resource.create({key: value for key, value in ours.items() if key not in told})


class SpanQueue(BatchSpanProcessor):
    """The library's queue and thread, with a count of what they lose."""

    def __init__(self, delivery: "Delivery") -> None:
        super().__init__(delivery)
        self._delivery = delivery
        self._spans_max = int(os.environ.get(OTEL_BSP_MAX_QUEUE_SIZE, QUEUED_SPANS))
        self._ended = 0

    @property
    def unsent(self) -> int:
        """Lost, or not sent yet."""
        return self._ended - self._delivery.sent

    @property
    def dropped(self) -> int:
        """Lost: refused by the collector, or pushed out of the queue before that."""
        pushed_out = max(0, self._ended - self._delivery.taken - self._spans_max)
        return self._delivery.lost + pushed_out

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(span)
        self._ended += 1


class Delivery(SpanExporter):
    """Counts what the collector gets. One line a minute tells of what it does not get."""

    def __init__(self, exporter: SpanExporter, complaints: "Complaints") -> None:
        self._exporter = exporter
        self._complaints = complaints
        self._rarely = Rarely()
        self.taken = self.sent = 0

    @property
    def lost(self) -> int:
        return self.taken - self.sent

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._complaints.first = ""
        result = self._exporter.export(spans)
        sent = result is SpanExportResult.SUCCESS
        self.sent += len(spans) if sent else 0
        self.taken += len(spans)
        if not sent and self._rarely.count("lost", time.monotonic()) is not None:
            log.warning("spans are lost", spans=self.lost, why=self._complaints.first)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class Complaints(logging.Handler):
    """What the library has to say of our side. In the log it would be a line for each try and lost span."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.first = ""
        """Of those since it was emptied: the cause of the others."""
        logger = logging.getLogger("opentelemetry")
        logger.handlers[:] = [self]
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(_OF_CALLERS):
            self.first = self.first or record.getMessage()
