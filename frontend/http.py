"""The HTTP side: /metrics, /healthz and /readyz. Answers are JSON, errors too; /metrics has other forms."""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from frontend import metrics_page
from frontend.auth import HttpKeyCheck
from frontend.cluster import Cluster
from frontend.health import Health
from frontend.media_type import MediaType, wanted_type
from frontend.metrics_page import MetricsPage
from frontend.rpc import OpenCalls
from proto.rarely import Rarely

ALLOWED_METHODS: Final = ("GET", "HEAD")
PROTECTED: Final = frozenset({"/metrics"})
"""Where a key is asked for, if one is asked for at all: probes have none."""
MAX_CONNECTIONS: Final = 256
SEND_LIMIT_S: Final = 30.0
"""For a client to read /metrics; Prometheus gives up after 10 s by default."""
MAX_SCRAPES: Final = 16
PIECE_BYTES: Final = 64 * 1024
IDLE_LIMIT_S: Final = 30.0
CLOSE_LIMIT_S: Final = 1.0
HEADER_MAX_BYTES: Final = 8190

log = structlog.get_logger()

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPages:
    """What the pages show, and how it is found out."""

    cluster: Cluster
    health: Health
    metrics_text: MetricsPage
    scrapes: OpenCalls = field(default_factory=OpenCalls)
    """Each may hold a page of some megabytes until its client has read it."""

    async def metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        media_type = wanted_type(request.headers.getall("Accept", ()))
        if self.scrapes.count >= MAX_SCRAPES:
            return error_response(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{MAX_SCRAPES} scrapes are being answered already",
                {"Retry-After": "1"},
            )
        with self.scrapes:
            body = await self.metrics_text.body(media_type)
            return await _sent(request, media_type, body)

    async def healthz(self, _request: web.BaseRequest) -> web.Response:
        return _verdict(self.health.why_not_serving())

    async def readyz(self, _request: web.BaseRequest) -> web.Response:
        return _verdict(self.health.why_not_ready(self.cluster))

    def by_path(self) -> Mapping[str, Answer]:
        return {"/metrics": self.metrics, "/healthz": self.healthz, "/readyz": self.readyz}


class HttpServer:
    """Routes requests to pages."""

    def __init__(
        self, pages: StatusPages, key_check: HttpKeyCheck | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        """Without a check nobody needs a key, without TLS it is plain HTTP."""
        self._pages = pages.by_path()
        self._key_check = key_check
        self._tls = tls
        self._runner = web.ServerRunner(_Server(self._respond), shutdown_timeout=CLOSE_LIMIT_S)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port, which was chosen by the system if `port` is 0.

        Raises:
            OSError: the address cannot be listened on.
        """
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=self._tls).start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        answer = self._pages.get(request.path)
        if answer is None:
            known = ", ".join(self._pages)
            return error_response(HTTPStatus.NOT_FOUND, f"no such page; there are {known}")
        if request.method not in ALLOWED_METHODS:
            allowed = ", ".join(ALLOWED_METHODS)
            text = f"{request.path} answers only {allowed}"
            return error_response(HTTPStatus.METHOD_NOT_ALLOWED, text, {"Allow": allowed})
        problem = self._key_check.problem(request) if self._key_check and request.path in PROTECTED else None
        if problem is not None:
            return error_response(HTTPStatus.UNAUTHORIZED, problem, {"WWW-Authenticate": "Bearer"})
        try:
            return await answer(request)
        except TimeoutError:
            limit_s = metrics_page.ANSWER_LIMIT_S
            return error_response(HTTPStatus.GATEWAY_TIMEOUT, f"no answer within {limit_s:g} s")


async def _sent(request: web.BaseRequest, media_type: MediaType, body: bytes) -> web.StreamResponse:
    """Piece by piece: what a slow client has not read yet is not copied into its connection's buffer.

    A client that leaves in between is nobody's fault.
    """
    response = web.StreamResponse(headers={"Content-Type": media_type.content_type, "Vary": "Accept"})
    response.content_length = len(body)
    try:
        async with asyncio.timeout(SEND_LIMIT_S):
            await response.prepare(request)
            if request.method != "HEAD":
                for start in range(0, len(body), PIECE_BYTES):
                    await response.write(body[start : start + PIECE_BYTES])
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


def error_response(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=headers)


def _verdict(problem: str | None) -> web.Response:
    if problem is None:
        return web.json_response({"status": "ok"})
    return error_response(HTTPStatus.SERVICE_UNAVAILABLE, problem)


class _Server(web.Server):
    """aiohttp's server with a limit on connections, and JSON also for what is no HTTP request at all.

    Beyond the limit a new connection takes the place of an idle one: of the address that has most of these,
    the one that has been idle for longest. So whoever opens many keeps out only those of the same address.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(self._answer_one)
        self._answer = answer
        self._evictions = Rarely()
        self._idle: dict[web.RequestHandler, asyncio.Transport] = {}
        """Without a request, or not with a whole one yet; longest first."""

    async def _answer_one(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = self._idle.pop(request.protocol, None)
        try:
            return await self._answer(request)
        finally:
            if transport is not None and request.transport is not None:
                self._idle[request.protocol] = transport

    def __call__(self) -> web.RequestHandler:
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # none is allowed, says aiohttp elsewhere
            keepalive_timeout=IDLE_LIMIT_S,
            lingering_time=1.0,
            max_line_size=HEADER_MAX_BYTES,
            max_field_size=HEADER_MAX_BYTES,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._idle[handler] = transport
        if len(self.connections) > MAX_CONNECTIONS:
            # Not at once: aiohttp expects that a connection lives until its first request is awaited.
            asyncio.get_running_loop().call_soon(self._take_out_one().abort)

    def _take_out_one(self) -> asyncio.Transport:
        crowd = Counter(map(_address, self._idle.values()))
        ((address, connections),) = crowd.most_common(1)
        longest = next(handler for handler, each in self._idle.items() if _address(each) == address)
        times = self._evictions.count(address, asyncio.get_running_loop().time())
        if times is not None:
            log.warning(
                "http connection ended for another one",
                limit=MAX_CONNECTIONS,
                address=address,
                idle_of_it=connections,
                times=times,
            )
        return self._idle.pop(longest)

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        self._idle.pop(handler, None)
        super().connection_lost(handler, exc)


def _address(transport: asyncio.Transport) -> str:
    """Of the client's host."""
    return str((transport.get_extra_info("peername") or ("",))[0])


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's words for it, which quote what was sent
    ) -> web.StreamResponse:
        """Answer what could not be parsed, or failed on a bug of ours; the connection ends with it."""
        response = self._explain(request, status, exc)
        response.force_close()
        return response

    def _explain(self, request: web.BaseRequest, status: int, exc: BaseException | None) -> web.Response:
        if isinstance(exc, LineTooLong):
            text = f"the request line or a header is longer than {HEADER_MAX_BYTES} bytes"
            return error_response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        if status < HTTPStatus.INTERNAL_SERVER_ERROR:
            return error_response(HTTPStatus(status), "this is not a valid HTTP request")
        log.error("http request failed on a bug", path=request.path, exc_info=exc)
        return error_response(HTTPStatus(status), "the frontend failed to handle this request")
