"""Who may send calls here: the standard gRPC health service, and what /healthz and /readyz say."""

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health

from frontend.cluster import Cluster
from frontend.service import SERVICE_NAME

WHOLE_SERVER: Final = ""
WATCHERS_MAX: Final = 4096
"""Open `Watch` calls, which need no key and stay: clients that balance keep one for each channel."""
_UNKNOWN: Final = "unknown"


class Health:
    """The frontend serves until it drains; `imagegen.ImageGen` serves only with a ready worker."""

    def __init__(self) -> None:
        self.servicer = _BoundedServicer()
        self.serving = False
        self._ready = False
        self._changed = asyncio.Event()

    def readiness_changed(self, ready: bool) -> None:
        """Whether a worker is ready; may be called at any time."""
        self._ready = ready
        self._changed.set()

    async def publish(self) -> None:
        """Pass every change on to the health service, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish_now()

    async def start(self) -> None:
        self.serving = True
        await self._publish_now()

    async def stop(self) -> None:
        """From now on, and for good, nothing serves here."""
        self.serving = False
        await self.servicer.enter_graceful_shutdown()

    async def _publish_now(self) -> None:
        await self.servicer.set(WHOLE_SERVER, _status(self.serving))
        await self.servicer.set(SERVICE_NAME, _status(self.serving and self._ready))

    def why_not_serving(self) -> str | None:
        return None if self.serving else "this frontend is starting or shutting down"

    def why_not_ready(self, cluster: Cluster) -> str | None:
        """None if a `Generate` has a chance now."""
        if not self.serving:
            return self.why_not_serving()
        if not cluster.broker_alive:
            return "no broker answers"
        if cluster.ready_workers == 0:
            return "no worker is ready"
        return None


class _BoundedServicer(grpc_health.HealthServicer):
    """The library's, in which strangers cannot take all memory."""

    def __init__(self) -> None:
        super().__init__()
        self._watchers = 0

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        if self._watchers >= WATCHERS_MAX:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHERS_MAX} health watchers are open: use Check"
            )
        if request.service not in {WHOLE_SERVER, SERVICE_NAME}:
            # It would be kept as long as it is watched, and nothing here is ever added.
            request = health_pb2.HealthCheckRequest(service=_UNKNOWN)
        self._watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watchers -= 1


def _status(serves: bool) -> int:
    response = health_pb2.HealthCheckResponse
    return response.SERVING if serves else response.NOT_SERVING
