"""Who may send calls here: the standard gRPC health service, and what /healthz and /readyz say."""

import asyncio
from collections import Counter
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from frontend.cluster import Cluster
from frontend.service import SERVICE_NAME

WHOLE_SERVER: Final = ""
WATCHERS_MAX: Final = 1024
"""Open `Watch` calls of one address. They need no key and stay: clients that balance keep one a channel."""
NAME_MAX_CHARACTERS: Final = 256
"""Of a service: a watched name is kept as long as its call."""

_Context = grpc.aio.ServicerContext[Any, Any]


class Health:
    """The frontend serves until it drains; `imagegen.ImageGen` serves only with a ready worker."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()
        self.serving = False
        self._ready = False

    def readiness_changed(self, ready: bool) -> None:
        """Whether a worker is ready; may be called at any time."""
        self._ready = ready
        self._publish()

    def start(self) -> None:
        self.serving = True
        self._publish()

    def stop(self) -> None:
        """From now on nothing serves here."""
        self.serving = False
        self._publish()

    def _publish(self) -> None:
        self.servicer.set(WHOLE_SERVER, _status(self.serving))
        self.servicer.set(SERVICE_NAME, _status(self.serving and self._ready))

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


class HealthServicer(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1.Health`. The library's own lets a watcher that does not read hold up all others: it
    writes to each with the lock in its hand that a change of status needs, and that a drain waits for.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        """Of the present statuses: set, and replaced, when one changes."""
        self._watchers: Counter[str] = Counter()
        """By address."""

    def set(self, service: str, status: int) -> None:
        if self._statuses.get(service) != status:
            self._statuses[service] = status
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> health_pb2.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            known = ", ".join(repr(each) for each in self._statuses)
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; there are {known}")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, _request: Any, _context: _Context) -> Any:  # noqa: N802
        response = health_pb2.HealthListResponse()  # type: ignore[attr-defined]  # unknown to its stubs
        for service, status in self._statuses.items():
            response.statuses[service].status = status
        return response

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> None:
        if len(request.service) > NAME_MAX_CHARACTERS:
            detail = f"a service's name has {NAME_MAX_CHARACTERS} characters at most"
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, detail)
        address = context.peer().rpartition(":")[0]
        if self._watchers[address] >= WATCHERS_MAX:
            detail = f"{WATCHERS_MAX} health watchers of this address are open"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)
        self._watchers[address] += 1
        try:
            await self._tell(request.service, context)
        finally:
            self._watchers[address] -= 1
            if not self._watchers[address]:
                del self._watchers[address]

    async def _tell(self, service: str, context: _Context) -> None:
        """The status, now and at each change, until the watcher leaves."""
        told = None
        while True:
            changed = self._changed
            status = self._statuses.get(service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()


def _status(serves: bool) -> int:
    response = health_pb2.HealthCheckResponse
    return response.SERVING if serves else response.NOT_SERVING
