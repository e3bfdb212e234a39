"""One unary method of the service: decode the request, answer, and say in one log line how it went."""

from __future__ import annotations  # gRPC's handlers are generic for type checkers only

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from grpc_status import rpc_status

from frontend import errors
from frontend.auth import caller_fingerprint

Context = grpc.aio.ServicerContext[bytes, bytes]
Q = TypeVar("Q", bound=Message)

log = structlog.get_logger()

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

    async def all_answered(self) -> None:
        await self._none_open.wait()


def unary_method(
    name: str,
    request_type: type[Q],
    answer: Callable[[Q, Context], Awaitable[bytes]],
    open_calls: OpenCalls,
) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A handler around `answer`, which returns the encoded response or raises `RpcFailed`.

    The request is decoded here and not by gRPC, whose word for garbage is an internal error.
    """

    async def respond(request_bytes: bytes, context: Context) -> bytes:
        with open_calls, _CallLog(name, context) as call_log:
            try:
                return await answer(_decode(request_type, request_bytes), context)
            except errors.RpcFailed as failure:
                status = failure.status
            except Exception:
                log.exception("call failed on a bug", method=name)
                status = errors.internal_error()
            call_log.code = _CODES[status.code]
            call_log.reason = errors.reason_of(status)
            return await context.abort_with_status(rpc_status.to_status(status))

    return grpc.unary_unary_rpc_method_handler(respond)


def _decode(request_type: type[Q], request_bytes: bytes) -> Q:
    try:
        return request_type.FromString(request_bytes)
    except DecodeError:
        raise errors.RpcFailed(errors.undecodable_request(request_type.DESCRIPTOR.full_name)) from None


class _CallLog:
    """Writes the line. A call that is cancelled from outside ends here too."""

    def __init__(self, method: str, context: Context) -> None:
        self._method = method
        self._context = context
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
        fields = {"reason": self.reason} if self.reason else {}
        log.info(
            "call ended",
            method=self._method,
            code=self.code.name,
            duration_s=round(time.monotonic() - self._started_at, 4),
            key_fingerprint=caller_fingerprint.get("-"),
            **fields,
        )
