"""API keys: who may call. Keys stay in this module; everywhere else goes their fingerprint."""

from __future__ import annotations  # gRPC's handlers are generic for type checkers only

import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

import grpc
import structlog
from grpc_status import rpc_status

from frontend import errors

API_KEY_METADATA: Final = "api-key"
OPEN_SERVICE_PREFIX: Final = "/grpc.health.v1.Health/"
MAX_KEY_CHARACTERS: Final = 256
LOG_INTERVAL_S: Final = 5.0

caller_fingerprint: ContextVar[str] = ContextVar("caller_fingerprint")
"""Whose call this is; set for every RPC that passed the interceptor."""

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")


def parse_api_keys(text: str) -> tuple[str, ...]:
    """The keys in a comma-separated list; blanks around them do not count.

    Raises:
        ValueError: the list is not usable. The text says which entry, and never quotes it.
    """
    keys = tuple(entry.strip() for entry in text.split(","))
    if keys == ("",):
        raise ValueError("at least one key is needed")
    for position, key in enumerate(keys, start=1):
        if not key:
            raise ValueError(f"entry {position} is empty")
        if not all("!" <= character <= "~" for character in key):
            raise ValueError(f"entry {position}: a key consists of printable ASCII characters without spaces")
        if len(key) > MAX_KEY_CHARACTERS:
            raise ValueError(f"entry {position}: a key has at most {MAX_KEY_CHARACTERS} characters")
        if key in keys[: position - 1]:
            raise ValueError(f"entry {position} repeats entry {keys.index(key) + 1}")
    return keys


def fingerprint(key: str) -> str:
    """A short name for a key, the same in every frontend. It does not tell the key."""
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"imagegen-api-key").hexdigest()


class KeyProblem(StrEnum):
    """Why a call is not let in."""

    MISSING = "API_KEY_MISSING"
    WRONG = "API_KEY_WRONG"
    SEVERAL = "API_KEY_AMBIGUOUS"


_EXPLANATIONS: Final = {
    KeyProblem.MISSING: f"no API key: send it as the metadata entry '{API_KEY_METADATA}'",
    KeyProblem.WRONG: f"the API key in the metadata entry '{API_KEY_METADATA}' is not valid",
    KeyProblem.SEVERAL: f"more than one metadata entry '{API_KEY_METADATA}': send exactly one",
}


@dataclass(frozen=True, slots=True)
class AcceptedKey:
    fingerprint: str


class ApiKeys:
    """The keys that are let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._fingerprints = {_comparable(key): fingerprint(key) for key in keys}

    def check(self, offered: Sequence[str]) -> AcceptedKey | KeyProblem:
        """Judge what a call carries as its key; takes as long whatever is in it."""
        if not offered:
            return KeyProblem.MISSING
        if len(offered) > 1:
            return KeyProblem.SEVERAL
        candidate = _comparable(offered[0])
        matches = [
            name for known, name in self._fingerprints.items() if hmac.compare_digest(known, candidate)
        ]
        return AcceptedKey(matches[0]) if matches else KeyProblem.WRONG


def _comparable(key: str) -> bytes:
    # All of one length, so that a comparison does not tell how long the keys are.
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


class RefusalLog:
    """Logs refused calls, but not each: a guesser must not be able to fill the disk."""

    def __init__(
        self, interval_s: float = LOG_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next_at = float("-inf")
        self._unlogged = 0

    def note(self, problem: KeyProblem, method: str, peer: str) -> None:
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
            case AcceptedKey(fingerprint=name):
                caller_fingerprint.set(name)
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


def _offered_keys(details: grpc.HandlerCallDetails) -> list[str]:
    return [str(value) for name, value in details.invocation_metadata if name == API_KEY_METADATA]
