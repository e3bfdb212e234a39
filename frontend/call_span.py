"""The span of a call: the one below which all other spans of its job are."""

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

import grpc
import structlog

from proto.messages import TraceContext

if TYPE_CHECKING:
    from proto.spans import Span

_FAULTS_OF_SERVERS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""The statuses that make a server's span an error, by OpenTelemetry's conventions for gRPC."""

_span_of_call: ContextVar["Span"] = ContextVar("_span_of_call")


def trace_call(span: "Span") -> TraceContext | None:
    """This call is traced from now on: its log lines carry the trace. None if it is not sampled."""
    _span_of_call.set(span)
    context = span.context
    if context is not None:
        structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
    return context


def name_span(job_id: str, *, width: int, height: int, steps: int) -> None:
    """What the call asks for is known."""
    if (span := _span_of_call.get(None)) is not None:
        span.set({"flux.job_id": job_id, "flux.width": width, "flux.height": height, "flux.steps": steps})


def end_span(code: grpc.StatusCode, reason: str) -> None:
    if (span := _span_of_call.get(None)) is None:
        return
    span.set({"rpc.grpc.status_code": code.value[0]})
    if reason:
        span.set({"flux.reason": reason})
    span.end(time.monotonic(), (reason or code.name) if code in _FAULTS_OF_SERVERS else "")
