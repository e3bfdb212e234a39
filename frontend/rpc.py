"""One unary method of the service: decode the request, answer, and say in one log line how it went."""

from __future__ import annotations  # gRPC's handlers are generic for type checkers only

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, NoReturn, Self, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from frontend import errors
from frontend.auth import caller
from frontend.call_span import end_span
from frontend.call_tally import CallTally
from proto.logs import short_id

Context = grpc.aio.ServicerContext[bytes, bytes]
Q = TypeVar("Q", bound=Message)

JOB_ID_METADATA: Final = "job-id"

log = structlog.get_logger()

_job_of_call: ContextVar[str] = ContextVar("_job_of_call")
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class OpenCalls:
    """How many calls are being answered; a draining server waits until there is none."""

    def __init__(self) -> None:
        self._count = 0
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none_open.clear()

    def __exit__(self, *_exception: object) -> None:
        self._count -= 1
        if self._count == 0:
            self._none_open.set()

    @property
    def count(self) -> int:
        return self._count

    async def all_answered(self) -> None:
        await self._none_open.wait()


def name_job(job_id: bytes) -> None:
    """This call has a job from now on: its log lines and its answer, whatever that will be, carry the id."""
    name = short_id(job_id)
    structlog.contextvars.bind_contextvars(job_id=name)
    _job_of_call.set(name)


def unary_method(
    name: str,
    request_type: type[Q],
    answer: Callable[[Q, Context], Awaitable[bytes]],
    open_calls: OpenCalls,
    tally: CallTally,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler around `answer`, which returns the encoded response or raises `RpcFailed`.

    The request is decoded here and not by gRPC, whose word for garbage is an internal error.
    """

    async def respond(request_bytes: bytes, context: Context) -> bytes:
        with open_calls, _CallLog(name, context, tally) as call_log:
            try:
                response = await answer(_decode(request_type, request_bytes), context)
            except errors.RpcFailed as failure:
                status = failure.status
            except Exception:
                log.exception("call failed on a bug", method=name)
                status = errors.internal_error()
            else:
                context.set_trailing_metadata(_job_metadata())
                return response
            call_log.code = _CODES[status.code]
            call_log.reason = errors.reason_of(status)
            return await _abort(context, status)

    return grpc.unary_unary_rpc_method_handler(respond)


async def _abort(context: Context, status: Status) -> NoReturn:
    # Not `abort_with_status`, which would replace what is to be sent beside the status.
    job_metadata = _job_metadata()
    for _, job_id in job_metadata:
        status = errors.of_job(status, job_id)
    refusal = rpc_status.to_status(status)
    await context.abort(refusal.code, refusal.details, (*job_metadata, *refusal.trailing_metadata))


def _job_metadata() -> tuple[tuple[str, str], ...]:
    """For the end of a call, not its beginning: once a server has begun to answer, the client's gRPC no
    longer retries by its `retryPolicy`.
    """
    job_id = _job_of_call.get(None)
    return () if job_id is None else ((JOB_ID_METADATA, job_id),)


def _decode(request_type: type[Q], request_bytes: bytes) -> Q:
    try:
        return request_type.FromString(request_bytes)
    except DecodeError:
        raise errors.RpcFailed(errors.undecodable_request(request_type.DESCRIPTOR.full_name)) from None


class _CallLog:
    """Writes the line, and counts. A call that is cancelled from outside ends here too."""

    def __init__(self, method: str, context: Context, tally: CallTally) -> None:
        self._method = method
        self._context = context
        self._tally = tally
        self._started_at = time.monotonic()
        self.code = grpc.StatusCode.OK
        self.reason = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is asyncio.CancelledError:
            remaining_s: float | None = self._context.time_remaining()
            timed_out = remaining_s is not None and remaining_s <= 0
            self.code = grpc.StatusCode.DEADLINE_EXCEEDED if timed_out else grpc.StatusCode.CANCELLED
        duration_s = time.monotonic() - self._started_at
        self._tally.call_ended(self._method, self.code.name, duration_s)
        end_span(self.code, self.reason)
        fields = {"reason": self.reason} if self.reason else {}
        client = caller.get(None)
        log.info(
            "call ended",
            method=self._method,
            code=self.code.name,
            duration_s=round(duration_s, 4),
            key="-" if client is None else client.name,
            **fields,
        )
