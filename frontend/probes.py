"""What the metrics page measures itself: this host's load, and whether the own gRPC port answers."""

import asyncio
import ssl
from types import TracebackType
from typing import Final, Self

import grpc
import psutil
from grpc_health.v1 import health, health_pb2

from frontend.status import HostLoad

MIB: Final = 1024 * 1024
GRPC_LIMIT_S: Final = 1.0

_CHANNEL_OPTIONS: Final = [
    ("grpc.enable_http_proxy", 0),  # the environment's proxy must not come between us and ourselves
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class ThisHost:
    """CPU and RAM of the host that the frontend runs on. It has no GPU that the service uses."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call has nothing to compare with; later ones cover the time between

    def load(self) -> HostLoad:
        ram_used_mb = round(psutil.virtual_memory().used / MIB, 3)
        return HostLoad(cpu_percent=psutil.cpu_percent(), ram_used_mb=ram_used_mb, gpu_used_mb=0.0)


class GrpcProbe:
    """Makes a real health call to the frontend's own server, over a connection that is kept."""

    def __init__(
        self, target: str, limit_s: float = GRPC_LIMIT_S, tls_port: tuple[str, int] | None = None
    ) -> None:
        """`tls_port`: a host and port on which the server speaks TLS. We have neither its authority's
        certificate nor, perhaps, one that it would accept: there a handshake has to do, and `target` is a
        socket of our own.
        """
        self._tls_port = tls_port
        self._channel = grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._check = self._channel.unary_unary(
            f"/{health.SERVICE_NAME}/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._limit_s = limit_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def answers(self) -> bool:
        """Whether the port answered within the limit; a server that says NOT_SERVING does answer."""
        try:
            async with asyncio.timeout(self._limit_s):
                await self._check(health_pb2.HealthCheckRequest())
                if self._tls_port is not None:
                    await _shake_hands(*self._tls_port)
        except (grpc.aio.AioRpcError, OSError, TimeoutError):
            return False
        return True


async def _shake_hands(host: str, port: int) -> None:
    """Raises `OSError`, of which `ssl.SSLError` is one, unless a TLS server answers there."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.transport.abort()


def reachable(host: str) -> str:
    """Where a server that listens on `host` is reached from its own host."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)


def own_target(host: str, port: int) -> str:
    """The same with the port."""
    return authority(reachable(host), port)


def authority(host: str, port: int) -> str:
    """`host:port` as gRPC and people write it, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
