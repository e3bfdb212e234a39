"""The frontend as a process: its two servers, from the first bind to the end of the drain."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from frontend.auth import ApiKeyInterceptor, HttpKeyCheck, RefusalLog
from frontend.call_tally import CallTally
from frontend.cluster import Cluster
from frontend.edge import Edge
from frontend.health import Health
from frontend.http import HttpServer, StatusPages
from frontend.metrics_page import MetricsPage, Sources
from frontend.ports import CannotListen, require_free_port
from frontend.probes import GrpcProbe, ThisHost, authority, own_target, reachable
from frontend.render_thread import RenderThread
from frontend.rpc import OpenCalls
from frontend.service import SERVICE_NAME, ImageGenService
from frontend.settings import FrontendSettings
from frontend.status_text import status_text
from proto.messages import MAX_IMAGE_BYTES
from proto.service_watch import ServiceWatch
from proto.signals import on_end_signals, on_reload_signal

if TYPE_CHECKING:
    from proto.spans import Tracing

REQUEST_MAX_BYTES: Final = 1024 * 1024
"""Far above any valid request: what is a little too long is to hear our error and not gRPC's."""
PENDING_CALLS_MAX: Final = 10_000
"""That have come and that the loop has not looked at yet, all connections together."""
FLUSH_S: Final = 2.0
"""For answers that are on their way when the last call has been answered."""

log = structlog.get_logger()

ConnectCluster = Callable[[FrontendSettings, Callable[[bool], None]], Cluster]
"""Makes the cluster; it reports through the second argument whether a worker is ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningFrontend:
    grpc_port: int
    http_port: int


@asynccontextmanager
async def running_frontend(
    settings: FrontendSettings, edge: Edge, connect: ConnectCluster, tracing: "Tracing | None" = None
) -> AsyncIterator[RunningFrontend]:
    """The frontend serves within this context, and drains at its end. Calls are traced with `tracing`.

    Raises:
        CannotListen: a port is taken, or an address is not this machine's.
    """
    frontend_health = Health()
    open_calls = OpenCalls()
    tally = CallTally()
    cluster = connect(settings, frontend_health.readiness_changed)
    async with AsyncExitStack() as stack:
        refusals = RefusalLog()
        render_thread = RenderThread()
        stack.callback(render_thread.close)
        service = ImageGenService(
            cluster, settings.request_limits, settings.max_job_s, tally, render_thread, tracing
        )
        interceptor = ApiKeyInterceptor(edge.keys, refusals)
        server = _grpc_server(settings, interceptor, service, frontend_health, open_calls)
        stack.push_async_callback(server.stop, None)  # also when the rest cannot start
        grpc_port = _listen_for_grpc(server, settings, edge)
        probe = await stack.enter_async_context(_grpc_probe(server, settings, edge, grpc_port, stack))
        sources = Sources(
            cluster=cluster,
            health=frontend_health,
            grpc_probe=probe,
            this_host=ThisHost(),
            open_calls=open_calls,
            tally=tally,
            refusals=refusals,
        )
        metrics = MetricsPage(sources, render_thread)
        stack.callback(metrics.close)
        pages = StatusPages(cluster=cluster, health=frontend_health, metrics_text=metrics)
        key_check = HttpKeyCheck(edge.keys, refusals) if settings.http_needs_key else None
        tls = edge.tls.https if edge.tls is not None and settings.http_tls else None
        http_server = HttpServer(pages, key_check, tls)
        stack.push_async_callback(http_server.close)
        http_port = await _listen_for_http(http_server, settings)
        stack.push_async_callback(cluster.close)
        await cluster.start()
        await server.start()
        frontend_health.start()
        _log_start(settings, edge, grpc_port, http_port)
        watch = ServiceWatch(
            status=lambda: status_text(cluster, open_calls, draining=not frontend_health.serving),
            is_well=lambda: not cluster.is_late,
        )
        stack.callback(watch.close)
        watch.ready()
        try:
            yield RunningFrontend(grpc_port=grpc_port, http_port=http_port)
        finally:
            watch.stopping()
            await _drain(settings, server, cluster, frontend_health, open_calls)


async def run_until_signal(
    settings: FrontendSettings, connect: ConnectCluster, tracing: "Tracing | None" = None
) -> None:
    """Serve until SIGTERM or SIGINT. A second signal ends the process at once.

    Raises:
        CannotListen, FileUnusable: it cannot start.
    """
    stop = asyncio.Event()

    def end(signal_name: str) -> None:
        log.info("draining", on=signal_name, drain_s=settings.drain_s)
        stop.set()

    on_end_signals(end)
    # Also where there is nothing to read: SIGHUP would end the process.
    on_reload_signal(lambda: log.info("reading keys and certificates again", on="SIGHUP"))
    edge = Edge(settings)
    edge.keep_fresh()
    async with running_frontend(settings, edge, connect, tracing):
        await stop.wait()
    log.info("stopped")


def _grpc_server(
    settings: FrontendSettings,
    interceptor: ApiKeyInterceptor,
    service: ImageGenService,
    frontend_health: Health,
    open_calls: OpenCalls,
) -> grpc.aio.Server:
    """Without a port, and not yet started."""
    server = grpc.aio.server(interceptors=[interceptor], options=_server_options(settings))
    server.add_generic_rpc_handlers([service.handlers(open_calls)])
    health_pb2_grpc.add_HealthServicer_to_server(frontend_health.servicer, server)
    reflection.enable_server_reflection([SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    return server


def _listen_for_grpc(server: grpc.aio.Server, settings: FrontendSettings, edge: Edge) -> int:
    require_free_port("gRPC", settings.grpc_host, settings.grpc_port)
    address = authority(settings.grpc_host, settings.grpc_port)
    try:
        if edge.tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, edge.tls.grpc_credentials())
    except RuntimeError as error:  # taken since we looked; gRPC says no more than that
        refusal = OSError(None, "gRPC could not bind it")
        raise CannotListen("gRPC", settings.grpc_host, settings.grpc_port, refusal) from error


def _grpc_probe(
    server: grpc.aio.Server,
    settings: FrontendSettings,
    edge: Edge,
    grpc_port: int,
    stack: AsyncExitStack,
) -> GrpcProbe:
    if edge.tls is None:
        return GrpcProbe(own_target(settings.grpc_host, grpc_port))
    # Into this folder nobody comes but this user: the socket is no way around a client's certificate.
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="flux-", ignore_cleanup_errors=True))
    target = f"unix:{folder}/probe"
    try:
        server.add_insecure_port(target)
    except RuntimeError as error:
        refusal = OSError(None, "gRPC could not bind it; its path may have 107 bytes, see TMPDIR")
        raise CannotListen("gRPC's own probe", target, 0, refusal) from error
    return GrpcProbe(target, tls_port=(reachable(settings.grpc_host), grpc_port))


def _server_options(settings: FrontendSettings) -> list[tuple[str, int]]:
    timeout_ms = round(settings.keepalive_timeout_s * 1000)
    return [
        ("grpc.so_reuseport", 0),  # a taken port is an error, not a port shared with a stranger
        ("grpc.max_receive_message_length", REQUEST_MAX_BYTES),
        ("grpc.max_send_message_length", MAX_IMAGE_BYTES + REQUEST_MAX_BYTES),
        # A client that froze or whose network is gone does not say so: ask, but only while it waits for a
        # job. A probe of a client that still downloads its image would queue behind it, and cut it off.
        ("grpc.keepalive_time_ms", round(settings.keepalive_interval_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it the one above never ended a call
        # Beyond these gRPC cancels calls without a word; by default from a thousand on, or after 30 s.
        ("grpc.server.max_pending_requests", PENDING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
        ("grpc.server_max_unrequested_time_in_server", round(settings.max_job_s)),
        # Clients may ask as well; by default one that does so more often than every 300 s is cut off.
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ]


async def _listen_for_http(http_server: HttpServer, settings: FrontendSettings) -> int:
    try:
        return await http_server.start(settings.http_host, settings.http_port)
    except OSError as error:
        raise CannotListen("HTTP", settings.http_host, settings.http_port, error) from error


async def _drain(
    settings: FrontendSettings,
    server: grpc.aio.Server,
    cluster: Cluster,
    frontend_health: Health,
    open_calls: OpenCalls,
) -> None:
    """Take no job any more, finish the open ones, and end every connection.

    Meanwhile new calls are still answered, with a reason. Waiting is for answers only: a health watcher
    stays for ever and must not hold up the end.
    """
    frontend_health.stop()
    cluster.drain()
    try:
        async with asyncio.timeout(settings.drain_s):
            await open_calls.all_answered()
    except TimeoutError:
        log.warning("drain time is over, open calls are given up", drain_s=settings.drain_s)
        await cluster.close()  # Every open call gets its reason.
    await server.stop(FLUSH_S)


def _log_start(settings: FrontendSettings, edge: Edge, grpc_port: int, http_port: int) -> None:
    scheme = "https" if settings.http_tls else "http"
    log.info(
        "serving",
        frontend_id=settings.frontend_id,
        grpc=authority(settings.grpc_host, grpc_port),
        http=f"{scheme}://{authority(settings.http_host, http_port)}",
        tls=edge.tls is not None,
        api_keys=len(edge.keys),
    )
