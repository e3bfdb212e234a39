"""The /metrics page: what it is made of is gathered on the event loop, its text is made beside it."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, openmetrics
from prometheus_client import exposition as plain

from frontend.api_keys import KeyProblem
from frontend.auth import RefusalLog
from frontend.call_tally import CallTally
from frontend.cluster import Cluster, ServicePicture
from frontend.health import Health
from frontend.media_type import MediaType
from frontend.metric_families import FrontendPicture, families
from frontend.probes import GrpcProbe, ThisHost
from frontend.render_thread import RenderThread, SharedAnswer
from frontend.rpc import OpenCalls
from frontend.status import HostLoad, metrics_document, service_status
from frontend.worker_counters import WorkerCounters
from proto.versions import DISTRIBUTION, version_of

ANSWER_LIMIT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the page shows."""

    cluster: Cluster
    health: Health
    grpc_probe: GrpcProbe
    this_host: ThisHost
    open_calls: OpenCalls
    tally: CallTally
    refusals: RefusalLog


class MetricsPage:
    def __init__(self, sources: Sources, render_thread: RenderThread) -> None:
        self._sources = sources
        self._render_thread = render_thread
        self._version = version_of(DISTRIBUTION)
        self._answers = {each: SharedAnswer(partial(self._make, each)) for each in MediaType}
        self._text = _Text()

    async def body(self, media_type: MediaType) -> bytes:
        """The page as it is now.

        Raises:
            TimeoutError: it could not be made in time.
        """
        return await self._answers[media_type].get()

    async def _make(self, media_type: MediaType) -> bytes:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            return await self._render_thread.run(await self._maker(media_type))

    async def _maker(self, media_type: MediaType) -> Callable[[], bytes]:
        """What makes the page, with all that it is made of."""
        sources = self._sources
        picture, grpc_up = await asyncio.gather(
            sources.cluster.service_picture(), sources.grpc_probe.answers()
        )
        if media_type is MediaType.JSON:
            return partial(json_page, picture, sources.this_host.load(), grpc_up)
        return partial(self._text.page, media_type, self._own_picture(grpc_up), picture)

    def _own_picture(self, grpc_up: bool) -> FrontendPicture:
        sources = self._sources
        return FrontendPicture(
            version=self._version,
            grpc_up=grpc_up,
            ready=sources.health.why_not_ready(sources.cluster) is None,
            open_calls=sources.open_calls.count,
            calls=sources.tally.numbers(),
            refused_keys={problem.value: sources.refusals.counts[problem] for problem in KeyProblem},
        )

    def close(self) -> None:
        for answer in self._answers.values():
            answer.close()


class _Text:
    """Prometheus' formats. For one thread."""

    def __init__(self) -> None:
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        self._counters = WorkerCounters()

    def page(self, media_type: MediaType, own: FrontendPicture, service: ServicePicture) -> bytes:
        registry = CollectorRegistry()
        registry.register(families(own, service, self._counters))
        registry.register(self._process)
        if media_type is MediaType.OPEN_METRICS:
            text: bytes = openmetrics.exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
            return text
        return plain.generate_latest(registry)


def json_page(picture: ServicePicture, this_host: HostLoad, grpc_alive: bool) -> bytes:
    return json.dumps(metrics_document(service_status(picture), this_host, grpc_alive=grpc_alive)).encode()
