"""Who may call: the API key is looked at before anything else of a call is."""

from __future__ import annotations  # gRPC's handlers are generic for type checkers only

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Final, TypeVar

import grpc
import structlog
from aiohttp import web
from grpc_status import rpc_status

from frontend import errors
from frontend.api_keys import ApiKeys, Client, KeyProblem

API_KEY_METADATA: Final = "api-key"
OPEN_SERVICE_PREFIX: Final = "/grpc.health.v1.Health/"
LOG_INTERVAL_S: Final = 5.0

caller: ContextVar[Client] = ContextVar("caller")
"""Whose call this is; set for every RPC that passed the interceptor."""

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")


_EXPLANATIONS: Final = {
    KeyProblem.MISSING: f"no API key: send it as the metadata entry '{API_KEY_METADATA}'",
    KeyProblem.WRONG: f"the API key in the metadata entry '{API_KEY_METADATA}' is not valid",
    KeyProblem.SEVERAL: f"more than one metadata entry '{API_KEY_METADATA}': send exactly one",
}
_HTTP_EXPLANATIONS: Final = {
    KeyProblem.MISSING: "no API key: send it as 'Authorization: Bearer KEY' or 'api-key: KEY'",
    KeyProblem.WRONG: "the API key is not valid",
    KeyProblem.SEVERAL: "more than one API key: send exactly one",
}


class RefusalLog:
    """Logs refused calls, but not each: a guesser must not be able to fill the disk."""

    def __init__(
        self, interval_s: float = LOG_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next_at = float("-inf")
        self._unlogged = 0
        self.counts: Counter[KeyProblem] = Counter()
        """All, logged or not."""

    def note(self, problem: KeyProblem, method: str, peer: str) -> None:
        self.counts[problem] += 1
        now = self._clock()
        if now < self._next_at:
            self._unlogged += 1
            return
        log.warning(
            "call refused", reason=problem.value, method=method, peer=peer, unlogged_before=self._unlogged
        )
        self._next_at = now + self._interval_s
        self._unlogged = 0


class ApiKeyInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through if its key is right. Outermost: a refused call's request is not even received."""

    def __init__(self, keys: ApiKeys, refusals: RefusalLog) -> None:
        self._keys = keys
        self._refusals = refusals

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Q, A] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Q, A] | None:
        if handler_call_details.method.startswith(OPEN_SERVICE_PREFIX):
            return await continuation(handler_call_details)
        match self._keys.check(_offered_keys(handler_call_details)):
            case Client() as client:
                caller.set(client)
                return await continuation(handler_call_details)
            case KeyProblem() as problem:
                return self._refusing_handler(problem, handler_call_details.method)

    def _refusing_handler(self, problem: KeyProblem, method: str) -> grpc.RpcMethodHandler[Q, A]:
        async def refuse(
            _requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> None:
            self._refusals.note(problem, method, context.peer())
            refusal = errors.status(grpc.StatusCode.UNAUTHENTICATED, _EXPLANATIONS[problem], problem)
            await context.abort_with_status(rpc_status.to_status(refusal))

        # A streaming handler fits every kind of call, and starts before a request has arrived.
        return grpc.stream_stream_rpc_method_handler(refuse)


class HttpKeyCheck:
    """The same for HTTP, where a key comes as `Authorization: Bearer KEY` or `api-key: KEY`."""

    def __init__(self, keys: ApiKeys, refusals: RefusalLog) -> None:
        self._keys = keys
        self._refusals = refusals

    def problem(self, request: web.BaseRequest) -> str | None:
        """What to tell whoever is not let in; None for everybody else."""
        match self._keys.check(_keys_in_headers(request)):
            case Client():
                return None
            case KeyProblem() as problem:
                method, peer = f"{request.method} {request.path}", str(request.remote)
                self._refusals.note(problem, method, peer)
                return _HTTP_EXPLANATIONS[problem]


def _keys_in_headers(request: web.BaseRequest) -> list[str]:
    """Each once: some clients are told to send both headers."""
    offered = list(request.headers.getall(API_KEY_METADATA, ()))
    for value in request.headers.getall("Authorization", ()):
        scheme, _, credentials = value.partition(" ")
        if scheme.lower() == "bearer":
            offered.append(credentials.strip())
    return list(dict.fromkeys(offered))


def _offered_keys(details: grpc.HandlerCallDetails) -> list[str]:
    return [str(value) for name, value in details.invocation_metadata if name == API_KEY_METADATA]
