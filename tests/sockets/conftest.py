"""Real sockets in this process: ours on the loop, and raw peers in a ZeroMQ context of their own."""

import asyncio
import socket
import tempfile
from pathlib import Path

import pytest
import zmq
import zmq.asyncio

from proto.codec import decode, encode
from proto.sockets import LoopSocket, close_context

LIMIT_S = 15.0
"""For what must happen, however slow this machine is."""


class RawPeer:
    """A socket that may say anything."""

    def __init__(self, context, kind, endpoint, *, bind=False, **options):
        self.socket = context.socket(kind)
        self.socket.set(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.set(getattr(zmq, name.upper()), value)
        (self.socket.bind if bind else self.socket.connect)(endpoint)

    async def send(self, *frames):
        async with asyncio.timeout(LIMIT_S):
            await self.socket.send_multipart(frames)

    async def say(self, message):
        await self.send(*encode(message))

    async def receive(self):
        async with asyncio.timeout(LIMIT_S):
            return await self.socket.recv_multipart()

    async def hear(self, kind):
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                message = decode(await self.socket.recv_multipart())
                if isinstance(message, kind):
                    return message

    def close(self):
        self.socket.close(linger=0)


async def _until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - there is nobody who could set an event
            await asyncio.sleep(0.005)


@pytest.fixture
def until():
    return _until


@pytest.fixture
def folder():
    """With a short path: that of an ipc endpoint has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="flux-") as name:
        yield Path(name)


@pytest.fixture
def endpoint(folder):
    return f"ipc://{folder}/socket"


@pytest.fixture
def tcp_endpoint():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
async def raw():
    """Makes raw peers; they are gone when the test is over."""
    context = zmq.asyncio.Context()
    peers = []

    def make(kind, endpoint, **options):
        peers.append(RawPeer(context, kind, endpoint, **options))
        return peers[-1]

    yield make
    for peer in peers:
        peer.close()
    context.term()


@pytest.fixture
async def loop_socket():
    """Makes sockets of ours; they are gone when the test is over."""
    sockets = []

    def make(kind, on_frames, max_message_bytes=2**20):
        sockets.append(LoopSocket(kind, max_message_bytes, on_frames))
        return sockets[-1]

    yield make
    for each in sockets:
        each.close()
    close_context()
