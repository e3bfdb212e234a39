"""Callers that do nothing but call, and how long each call took."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc

import image_gen_pb2

GENERATE: Final = "/imagegen.ImageGen/Generate"
PING: Final = "/imagegen.ImageGen/Ping"
METRICS: Final = "/imagegen.ImageGen/Metrics"
REQUEST: Final = image_gen_pb2.GenerateRequest(
    prompt="a lighthouse", height=64, width=64, num_inference_steps=1, guidance_scale=3.5, seed=1
).SerializeToString()
_OPTIONS: Final = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
_LIMIT_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What some callers saw."""

    latencies_s: Sequence[float]
    duration_s: float

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1000

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[98] * 1000

    @property
    def per_second(self) -> float:
        return len(self.latencies_s) / self.duration_s


class Callers:
    """Each with a key of its own, all on one connection."""

    def __init__(self, address: str, count: int) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._keys = key_names(count)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._channel.close()

    async def first_answer(self) -> None:
        """Wait until the server is there, and answers with an image."""
        await self._call(GENERATE, REQUEST, self._keys[0], wait_for_ready=True)

    async def draw(self, each: int) -> Load:
        """`each` images for every caller, one after the other. A refusal is an error."""
        return await self._all(each, lambda key: self._call(GENERATE, REQUEST, key))

    async def ping(self, each: int) -> Load:
        return await self._all(each, lambda key: self._call(PING, b"", key))

    async def metrics(self, each: int) -> Load:
        return await self._all(each, lambda key: self._call(METRICS, b"", key))

    async def be_refused(self, each: int) -> Load:
        """Likewise, where every call must be refused as no worker is free."""
        return await self._all(each, self._refused)

    async def _all(self, each: int, call: Any) -> Load:
        latencies: list[float] = []

        async def calls(key: str) -> None:
            for _ in range(each):
                began = time.perf_counter()
                await call(key)
                latencies.append(time.perf_counter() - began)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for key in self._keys:
                group.create_task(calls(key))
        return Load(latencies_s=latencies, duration_s=time.perf_counter() - began)

    async def _call(self, method: str, request: bytes, key: str, *, wait_for_ready: bool = False) -> bytes:
        multi = self._channel.unary_unary(method)
        answer: bytes = await multi(
            request, metadata=(("api-key", key),), timeout=_LIMIT_S, wait_for_ready=wait_for_ready
        )
        return answer

    async def _refused(self, key: str) -> None:
        try:
            await self._call(GENERATE, REQUEST, key)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                return
            raise
        raise RuntimeError("an image, though the only worker was to be busy")


def key_names(count: int) -> tuple[str, ...]:
    return tuple(f"caller{number}" for number in range(count))
