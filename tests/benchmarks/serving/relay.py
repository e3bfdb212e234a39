"""The least that the service's shape can cost: gRPC, ROUTER, DEALER and a pipe, with nothing that decides.

The same processes on the same sockets as the product, and the same bytes; no reports, no checks, no log.
`python -m benchmarks.serving.relay ROLE`, for each of frontend, broker and worker, in a folder of their own.
"""

import argparse
import asyncio
import multiprocessing
import threading
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any, Final

import grpc
import zmq

import image_gen_pb2
from proto.garbage import collect_rarely
from proto.large_blocks import keep_large_blocks
from proto.messages import Body
from proto.sockets import LoopSocket, SendResult

FRONTENDS: Final = "ipc://frontends"
WORKERS: Final = "ipc://workers"
_MAX_BYTES: Final = 32 * 1024 * 1024
_SERVICE: Final = "imagegen.ImageGen"


async def frontend(_image_bytes: int) -> None:
    """Prints its port once the broker is there."""
    waiting: dict[bytes, asyncio.Future[Body]] = {}
    loop = asyncio.get_running_loop()
    broker = LoopSocket(
        zmq.DEALER, _MAX_BYTES, lambda frames: waiting.pop(bytes(frames[0])).set_result(frames[1])
    )
    broker.connect(FRONTENDS)
    number = 0

    async def generate(request: bytes, _context: object) -> bytes:
        nonlocal number
        number += 1
        name = b"%d" % number
        waiting[name] = loop.create_future()
        broker.send([name, request])
        return bytes(await waiting[name])

    await _until_sent(broker, [b"hello"])
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(generate)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, {"Generate": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def broker(_image_bytes: int) -> None:
    """Prints a line once its one worker is there."""
    worker_route = b""

    def from_frontend(frames: list[Body]) -> None:
        if len(frames) == 3:
            workers.send([worker_route, *frames])

    def from_worker(frames: list[Body]) -> None:
        nonlocal worker_route
        if len(frames) == 2:
            worker_route = bytes(frames[0])
            print("ready", flush=True)
        else:
            frontends.send(frames[1:])

    workers = LoopSocket(zmq.ROUTER, _MAX_BYTES, from_worker)
    frontends = LoopSocket(zmq.ROUTER, _MAX_BYTES, from_frontend)
    workers.bind(WORKERS)
    frontends.bind(FRONTENDS)
    await asyncio.Event().wait()


async def worker(image_bytes: int) -> None:
    ours, theirs = multiprocessing.Pipe()
    multiprocessing.get_context("spawn").Process(target=draw, args=(theirs, image_bytes), daemon=True).start()
    loop = asyncio.get_running_loop()
    callers: list[list[Body]] = []

    def on_job(frames: list[Body]) -> None:
        callers.append(frames[:2])
        ours.send_bytes(bytes(frames[2]))

    def on_image(image: bytes) -> None:
        broker.send([*callers.pop(0), image])

    def listen() -> None:
        while True:
            loop.call_soon_threadsafe(on_image, ours.recv_bytes())

    broker = LoopSocket(zmq.DEALER, _MAX_BYTES, on_job)
    broker.connect(WORKERS)
    threading.Thread(target=listen, daemon=True).start()
    await _until_sent(broker, [b"hello"])
    await asyncio.Event().wait()


def draw(pipe: "Connection[Any, Any]", image_bytes: int) -> None:
    """In the engine's place: an encoded answer for each job, until the worker is gone."""
    answer = image_gen_pb2.GenerateResponse(image_png=bytes(image_bytes)).SerializeToString()
    while True:
        try:
            pipe.recv_bytes()
            pipe.send_bytes(answer)
        except (EOFError, OSError):
            return


async def _until_sent(socket: LoopSocket, frames: list[Body]) -> None:
    while socket.send(frames) is not SendResult.SENT:  # noqa: ASYNC110 - nothing tells of a connection
        await asyncio.sleep(0.01)


ROLES: Final[dict[str, Callable[[int], Awaitable[None]]]] = {
    "frontend": frontend,
    "broker": broker,
    "worker": worker,
}


async def _play(role: str, image_bytes: int) -> None:
    await ROLES[role](image_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--image-bytes", type=int, required=True)
    given = parser.parse_args()
    keep_large_blocks()
    collect_rarely()
    asyncio.run(_play(given.role, given.image_bytes))
