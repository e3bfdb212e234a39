"""A good client, which writes down all that it does: `python client.py LEDGER NAME SEED FRONTEND,… KEY,…`.

For each key one job at a time, with an idempotency key of its own and a deadline. A call that ends in
UNAVAILABLE or RESOURCE_EXHAUSTED is repeated, through the frontends in turn, while there is time. Killed and
started again it goes on with the jobs that its ledger has left open. SIGTERM ends it when its open jobs have
ended. Each line of the ledger is written at once, before what it tells of goes on.
"""

import asyncio
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from grpc_status import rpc_status

import image_gen_pb2
import image_gen_pb2_grpc
from gpu_worker.engines.fake import DamagedImageError, prompt_digest, read_fake_image

DEADLINE_S: Final = 60.0
PAUSE_S: Final = (0.1, 0.5)
"""Before a repeat, unless the refusal says how long."""
PAUSE_MAX_S: Final = 2.0
ASKED_TWICE_SHARE: Final = 0.2
"""Of the jobs, that are asked for again when their image is there."""
PULSE_S: Final = 0.2
STANDSTILL_S: Final = 0.5
REPEATABLE: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})
HOPELESS: Final = frozenset({"DEADLINE_TOO_SHORT", "OUT_OF_MEMORY"})
OPTIONS: Final = (
    ("grpc.keepalive_time_ms", 3000),
    ("grpc.keepalive_timeout_ms", 3000),
    ("grpc.http2.ping_timeout_ms", 3000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
)
"""Without the first ones a caller learns of a frontend that is cut off at its deadline only."""


class Lines:
    """The client's part of the ledger: whole lines, which survive the client."""

    def __init__(self, path: Path, client: str) -> None:
        self._client = client
        self.old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def write(self, what: str, **facts: object) -> None:
        line = {"at": round(time.monotonic(), 3), "what": what, "client": self._client, **facts}
        os.write(self._file, json.dumps(line).encode() + b"\n")


class Client:
    def __init__(self, lines: Lines, name: str, seed: int, frontends: list[str]) -> None:
        self._lines = lines
        self._name = name
        self._chance = random.Random(f"{name} {seed} {len(lines.old)}")
        self._frontends = frontends
        self._names = itertools.count(self._begun_before())
        self._stubs: list[image_gen_pb2_grpc.ImageGenStub] = []
        self._is_ending = False

    def _begun_before(self) -> int:
        return sum(line["what"] == "job" for line in self._lines.old)

    async def run(self, keys: list[str]) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._end)
        channels = [grpc.aio.insecure_channel(address, OPTIONS) for address in self._frontends]
        self._stubs = [image_gen_pb2_grpc.ImageGenStub(channel) for channel in channels]
        self._lines.write("started")
        pulse = asyncio.create_task(self._notice_standstills())
        async with asyncio.TaskGroup() as group:
            for key in keys:
                group.create_task(self._call_on(key))
        pulse.cancel()
        for channel in channels:
            await channel.close()

    def _end(self) -> None:
        self._is_ending = True

    async def _notice_standstills(self) -> None:
        """Frozen, or without a processor: what was late meanwhile was not the service's fault."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(PULSE_S)
            now = time.monotonic()
            if now - last > PULSE_S + STANDSTILL_S:
                self._lines.write("standstill", since=round(last, 3))
            last = now

    async def _call_on(self, key: str) -> None:
        for job in self._left_open(key):
            await self._have_drawn(key, job)
        for number in self._names:
            if self._is_ending:
                return
            job = self._new_job(f"{self._name}-{number}", key)
            self._lines.write("job", **job)
            await self._have_drawn(key, job)

    def _left_open(self, key: str) -> Iterator[dict[str, Any]]:
        """Jobs of an earlier life."""
        ended = {line["job"] for line in self._lines.old if line["what"] == "end"}
        for line in self._lines.old:
            if line["what"] == "job" and line["job"] not in ended and line["key"] == key:
                yield {name: value for name, value in line.items() if name not in {"at", "what", "client"}}

    def _new_job(self, name: str, key: str) -> dict[str, Any]:
        chance = self._chance
        wish = {
            "height": chance.randrange(48, 96),
            "width": chance.randrange(80, 128),
            "steps": chance.randrange(1, 12),
            "guidance": chance.randrange(4, 40) / 4,
            "seed": chance.randrange(2**64),
        }
        return {
            "job": name,
            "key": key,
            "wish": wish,
            "expected": digest(prompt_digest(_prompt(name)), **wish),
            "deadline": round(time.monotonic() + DEADLINE_S, 3),
        }

    async def _have_drawn(self, key: str, job: dict[str, Any]) -> None:
        outcome = "client was gone"
        for number in itertools.count(self._calls_before(job["job"])):
            if time.monotonic() >= job["deadline"]:
                break
            outcome, pause_s = await self._call(key, job, number)
            if pause_s is None:
                break
            await asyncio.sleep(min(pause_s, max(0.0, job["deadline"] - time.monotonic())))
        if outcome == "image" and self._chance.random() < ASKED_TWICE_SHARE:
            await self._call(key, job, number + 1)
        self._lines.write("end", job=job["job"], outcome=outcome)

    def _calls_before(self, job: str) -> int:
        return sum(line["what"] == "call" and line["job"] == job for line in self._lines.old)

    async def _call(self, key: str, job: dict[str, Any], number: int) -> tuple[str, float | None]:
        """Its outcome, and how long to wait until the next one; None: no more."""
        turn = (number + self._chance.randrange(2)) % len(self._frontends)
        self._lines.write("call", job=job["job"], call=number, frontend=self._frontends[turn])
        wish = job["wish"]
        request = image_gen_pb2.GenerateRequest(
            prompt=_prompt(job["job"]),
            height=wish["height"],
            width=wish["width"],
            num_inference_steps=wish["steps"],
            guidance_scale=wish["guidance"],
            seed=wish["seed"],
        )
        try:
            image = await self._stubs[turn].Generate(
                request,
                timeout=max(0.001, job["deadline"] - time.monotonic()),
                metadata=(("api-key", key), ("idempotency-key", job["job"])),
            )
        except grpc.aio.AioRpcError as error:
            return self._refused(error, job, number)
        self._lines.write(
            "answer",
            job=job["job"],
            call=number,
            code="OK",
            reason="",
            content=_content(image.image_png),
            bytes=hashlib.sha256(image.image_png).hexdigest()[:16],
            worker=image.receipt.worker_id,
            attempts=image.receipt.attempts,
        )
        return "image", None

    def _refused(
        self, error: grpc.aio.AioRpcError, job: dict[str, Any], number: int
    ) -> tuple[str, float | None]:
        code, (reason, retry_after_s) = error.code(), _details(error)
        self._lines.write(
            "answer", job=job["job"], call=number, code=code.name, reason=reason, text=error.details()
        )
        if code not in REPEATABLE or reason in HOPELESS:
            return f"{code.name} {reason}".strip(), None
        told_s = min(retry_after_s or 0.0, PAUSE_MAX_S)
        return f"{code.name} {reason}".strip(), max(told_s, self._chance.uniform(*PAUSE_S))


def _prompt(job: str) -> str:
    return f"what {job} asks for"


def digest(prompt: str, *, height: int, width: int, steps: int, guidance: float, seed: int) -> str:
    """Of what a picture has to show; `prompt` is a digest already."""
    facts = json.dumps([prompt, height, width, steps, round(guidance, 3), seed])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _content(png: bytes) -> str:
    try:
        content = read_fake_image(png)
    except DamagedImageError as error:
        return f"damaged: {error}"
    if content is None:
        return "too small to say"
    return digest(
        content.prompt_digest,
        height=content.height,
        width=content.width,
        steps=content.steps,
        guidance=content.guidance,
        seed=content.seed,
    )


def _details(error: grpc.aio.AioRpcError) -> tuple[str, float | None]:
    """The reason, and how long to wait if that is told."""
    status, info, retry = rpc_status.from_call(error), ErrorInfo(), RetryInfo()
    retry_after_s = None
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        if detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    return info.reason, retry_after_s


def main() -> None:
    path, name, seed, frontends, keys = sys.argv[1:]
    client = Client(Lines(Path(path), name), name, int(seed), frontends.split(","))
    asyncio.run(client.run(keys.split(",")))


if __name__ == "__main__":
    main()
