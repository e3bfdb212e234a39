"""The real servers on free ports, in this process, in front of a scripted cluster."""

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import grpc
import pytest
import structlog

import image_gen_pb2
import image_gen_pb2_grpc
from frontend.actions import ImageDelivered
from frontend.brokers import Standing
from frontend.cluster import BrokerPicture, ServicePicture
from frontend.edge import Edge
from frontend.server import running_frontend
from frontend.settings import FrontendSettings
from proto.signals import on_reload_signal

KEYS = "key-of-alice,key-of-bob"
LIMIT_S = 10.0
"""For what must happen, however slow this machine is."""


class ScriptedCluster:
    """Stands in for the broker client: answers with what a test laid down, or waits until it does."""

    def __init__(self, on_readiness):
        self._on_readiness = on_readiness
        self.ready_workers = 0
        self.broker_alive = True
        self.is_late = False
        self.end = ImageDelivered(png=b"\x89PNG made up", inference_time_s=1.5, seed=7)
        self.picture = ServicePicture(
            brokers=(
                BrokerPicture(broker_id="b", endpoint="tcp://b:1", standing=Standing.LIVE, gets_calls=True),
            )
        )
        self.draws = []
        self.draw_begun = asyncio.Event()
        self.draw_cancelled = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.life = []

    def set_ready_workers(self, count):
        self.ready_workers = count
        self._on_readiness(count > 0)

    async def start(self):
        self.life.append("started")

    async def draw(self, opened):
        self.draws.append(opened)
        self.draw_begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.draw_cancelled.set()
            raise
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    async def service_picture(self):
        return self.picture

    def drain(self):
        self.life.append("drained")

    async def close(self):
        self.life.append("closed")


@dataclass
class Frontend:
    """A running frontend and its clients."""

    grpc_port: int
    http_port: int
    cluster: ScriptedCluster
    channel: grpc.aio.Channel
    http: aiohttp.ClientSession
    key: tuple = (("api-key", "key-of-alice"),)
    stub: image_gen_pb2_grpc.ImageGenStub = field(init=False)

    def __post_init__(self):
        self.stub = image_gen_pb2_grpc.ImageGenStub(self.channel)

    def generate(self, *, metadata=None, timeout=LIMIT_S, **changes):
        return self.stub.Generate(request(**changes), metadata=metadata or self.key, timeout=timeout)

    async def read_again(self):
        """As when it is told to by SIGHUP."""
        done = asyncio.Event()
        on_reload_signal(done.set)
        signal.raise_signal(signal.SIGHUP)
        async with asyncio.timeout(LIMIT_S):
            await done.wait()

    async def get(self, path, **options):
        async with self.http.get(f"http://127.0.0.1:{self.http_port}{path}", **options) as response:
            return response.status, await response.json()


def request(**changes):
    """A valid request but for `changes`."""
    fields = {"prompt": "a fox", "height": 64, "width": 48, "num_inference_steps": 4, "guidance_scale": 3.5}
    return image_gen_pb2.GenerateRequest(**{**fields, **changes})


def settings(**changes):
    """Settings for a test: free ports, no environment."""
    fields = {"api_keys": KEYS, "grpc_port": 0, "http_port": 0, "drain_s": LIMIT_S}
    return FrontendSettings(**{**fields, **changes})


@asynccontextmanager
async def started_frontend(tracing=None, **changes):
    clusters = []

    def connect(_settings, on_readiness):
        clusters.append(ScriptedCluster(on_readiness))
        return clusters[0]

    # The clients outlive the server, and see it drain.
    wanted = settings(**changes)
    edge = Edge(wanted)
    edge.keep_fresh()
    async with AsyncExitStack() as clients:  # noqa: SIM117
        async with running_frontend(wanted, edge, connect, tracing) as running:
            target = f"127.0.0.1:{running.grpc_port}"
            channel = await clients.enter_async_context(grpc.aio.insecure_channel(target))
            http = await clients.enter_async_context(aiohttp.ClientSession())
            yield Frontend(running.grpc_port, running.http_port, clusters[0], channel, http)


@pytest.fixture
def start_frontend():
    return started_frontend


@pytest.fixture
async def log_lines():
    """All that is logged, as a queue."""
    lines = asyncio.Queue()

    def record(_logger, _method, event):
        lines.put_nowait(dict(event))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, record])
    yield lines
    structlog.configure(**before)


@pytest.fixture
def limit_s():
    return LIMIT_S


@pytest.fixture
async def frontend():
    async with started_frontend() as running:
        yield running
