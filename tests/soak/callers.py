"""Callers that draw without end, and hang up on every tenth job."""

import asyncio
import itertools
import random
from collections import Counter
from typing import Final

import grpc

import image_gen_pb2
import image_gen_pb2_grpc

CANCELLED_SHARE: Final = 0.1
KEYED_SHARE: Final = 0.5
"""Of the jobs, that have an idempotency key, so that workers keep their images."""
REPEATED_SHARE: Final = 0.02
"""Of those, that are asked for twice."""
HANGS_UP_WITHIN_S: Final = 0.04
DEADLINE_S: Final = 60.0
PAUSE_S: Final = 0.05
REPEATABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})


class Callers:
    """Each has a key and one call at a time, all on one connection."""

    def __init__(self, address: str, keys: tuple[str, ...], jobs: int, prompts: int, seed: int) -> None:
        """`prompts`: so many different ones; 0: each job has its own."""
        self.ended: Counter[str] = Counter()
        """Jobs, by how they ended."""
        self.refusals = 0
        self._address = address
        self._keys = keys
        self._wanted = iter(range(jobs))
        self._prompts = prompts or jobs
        self._chance = random.Random(seed)

    @property
    def jobs(self) -> int:
        return self.ended.total()

    async def run(self) -> None:
        """Until all jobs have ended."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            stub = image_gen_pb2_grpc.ImageGenStub(channel)
            async with asyncio.TaskGroup() as group:
                for key in self._keys:
                    group.create_task(self._call_on(stub, key))

    async def _call_on(self, stub: image_gen_pb2_grpc.ImageGenStub, key: str) -> None:
        for job in self._wanted:
            metadata = [("api-key", key)]
            if self._chance.random() < KEYED_SHARE:
                metadata.append(("idempotency-key", f"{key}-{job}"))
            if self._chance.random() < CANCELLED_SHARE:
                self.ended[await self._hang_up(stub, job, metadata)] += 1
                continue
            self.ended[await self._insist(stub, job, metadata)] += 1
            if len(metadata) > 1 and self._chance.random() < REPEATED_SHARE:
                await self._insist(stub, job, metadata)

    async def _insist(
        self, stub: image_gen_pb2_grpc.ImageGenStub, job: int, metadata: list[tuple[str, str]]
    ) -> str:
        """Repeat until there is an image, or a word that it is no use."""
        for _ in itertools.count():
            try:
                await stub.Generate(self._request(job, steps=1), metadata=metadata, timeout=DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                if error.code() not in REPEATABLE:
                    return error.code().name
                self.refusals += 1
                await asyncio.sleep(PAUSE_S)
            else:
                return "image"
        raise AssertionError

    async def _hang_up(
        self, stub: image_gen_pb2_grpc.ImageGenStub, job: int, metadata: list[tuple[str, str]]
    ) -> str:
        """In the middle of it, most of the time."""
        call = stub.Generate(self._request(job, steps=20), metadata=metadata, timeout=DEADLINE_S)
        await asyncio.sleep(self._chance.uniform(0, HANGS_UP_WITHIN_S))
        call.cancel()
        code = await call.code()
        return "cancelled" if code is grpc.StatusCode.CANCELLED else f"too late to cancel: {code.name}"

    def _request(self, job: int, steps: int) -> image_gen_pb2.GenerateRequest:
        return image_gen_pb2.GenerateRequest(
            prompt=f"prompt {job % self._prompts}",
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=3.5,
            seed=job,
        )
