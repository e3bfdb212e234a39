"""A collector of traces: OTLP over HTTP, as OpenTelemetry's own collectors speak it, with all that came."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedSpan:
    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty for the first of its trace."""
    begun_ns: int
    ended_ns: int
    failed: bool
    facts: dict[str, Any]
    """Its attributes, ours without their prefix."""


@dataclass
class OtlpReceiver:
    endpoint: str
    """For OTEL_EXPORTER_OTLP_ENDPOINT."""
    spans: list[ReceivedSpan] = field(default_factory=list)

    def trace_of(self, job_id: str) -> list[ReceivedSpan]:
        """All spans of this job's trace that have come, the earliest first."""
        spans = list(self.spans)
        traces = {span.trace_id for span in spans if span.facts.get("job_id") == job_id}
        found = (span for span in spans if span.trace_id in traces)
        return sorted(found, key=lambda span: (span.begun_ns, -span.ended_ns))

    @classmethod
    @contextmanager
    def listening(cls, port: int = 0) -> Iterator[Self]:
        server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        server.receiver = receiver = cls(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, name="otlp", daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.path == "/v1/traces"
        if known:
            self.server.receiver.spans += _received(request)  # type: ignore[attr-defined]
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_arguments: object) -> None:
        pass


def _received(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    return [
        ReceivedSpan(
            name=span.name,
            service=_facts(resource.resource.attributes)["service.name"],
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            begun_ns=span.start_time_unix_nano,
            ended_ns=span.end_time_unix_nano,
            failed=span.status.code == Status.STATUS_CODE_ERROR,
            facts=_facts(span.attributes),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _facts(attributes: Any) -> dict[str, Any]:
    return {
        each.key.removeprefix("flux."): getattr(each.value, each.value.WhichOneof("value"))
        for each in attributes
    }
