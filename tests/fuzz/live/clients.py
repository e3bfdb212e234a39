"""Hostile clients of the HTTP and the gRPC port, most of them on raw TCP."""

import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from random import Random
from typing import Final
from urllib.parse import urlsplit

import grpc

import image_gen_pb2

SLOW: Final = 150
"""Connections that are begun and left, at the same time; the port takes 256."""
ANSWER_LIMIT_S: Final = 60
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS: Final = b"\0\0\0\x04\0\0\0\0\0"
_HEADERS, _RST_STREAM, _PING, _WINDOW_UPDATE, _CONTINUATION = 1, 3, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4


def connected(address: str) -> socket.socket:
    where = urlsplit(address if "//" in address else f"//{address}")
    return socket.create_connection((str(where.hostname), int(where.port or 0)), timeout=ANSWER_LIMIT_S)


def _said(address: str, data: bytes, *, listen: bool = True) -> None:
    """To a connection that may end at any moment; what is answered is read to the end."""
    with connected(address) as connection, suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while listen and connection.recv(65536):
            pass


# --- HTTP ----------------------------------------------------------------------------------------

_PATHS: Final = (
    b"/healthz",
    b"/readyz",
    b"/x",
    b"*",
    b"//",
    b"/%00",
    b"/\xff",
    b"http://[::1",
    b"/?" + b"a=&" * 2000,
)
_METHODS: Final = (b"GET", b"HEAD", b"POST", b"CONNECT", b"PRI", b"get", b"\0", b"G" * 9000, b"OPTIONS")
_HEADERS_OF_HTTP: Final = (
    b"Host: a",
    b"Accept: " + b"text/plain;q=0.1," * 400,
    b"Accept: " + b"a" * 9000,
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Authorization: Bearer " + b"k" * 5000,
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b": no name",
    b" folded",
    b"\xff: \0",
    *(b"x-%d: y" % n for n in range(3)),
)


def http_request(random: Random) -> bytes:
    line = b" ".join(
        (random.choice(_METHODS), random.choice(_PATHS), b"HTTP/1.%d" % random.choice((0, 1, 1, 9)))
    )
    headers = random.choices(_HEADERS_OF_HTTP, k=random.choice((0, 1, 3, 200)))
    request = b"\r\n".join((line, *headers, b"", random.randbytes(random.choice((0, 20)))))
    if random.random() < 0.2:
        request = request[: random.randint(0, len(request))]
    return random.randbytes(100) if random.random() < 0.1 else request


def http_garbage(address: str, count: int, random: Random) -> int:
    for _ in range(count):
        _said(address, http_request(random))
    return count


def http_pipelines(address: str, count: int, random: Random) -> int:
    """A thousand requests on a connection, of which nobody reads the answers before the end."""
    for _ in range(count):
        _said(address, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
    return count * 1000


def http_slow(address: str, count: int, random: Random) -> int:
    """Connections that begin a request and say no more, until the server ends them."""
    for _ in range(count):
        with ExitStack() as stack:
            opened = [stack.enter_context(connected(address)) for _ in range(SLOW)]
            for each in opened:
                each.sendall(random.choice((b"", b"G", b"GET /healthz HTTP/1.1\r\nHost:")))
            for each in opened:
                _until_ended(each)
    return count * SLOW


def _until_ended(connection: socket.socket) -> None:
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        raise AssertionError(f"a connection without a request is open after {ANSWER_LIMIT_S} s") from None
    except OSError:
        return


# --- gRPC ----------------------------------------------------------------------------------------


def h2_frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, section 4.1."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that no table remembers (RFC 7541, section 6.2.2), of less than 127 bytes each."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _call(path: bytes = b"/imagegen.ImageGen/Ping", *more: tuple[bytes, bytes]) -> bytes:
    fields = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"a"))
    said = (*fields, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more)
    return b"".join(_literal(name, value) for name, value in said)


def grpc_garbage(address: str, count: int, random: Random) -> int:
    """Frames of HTTP/2 that are none, in no order, for streams that there are not; ten a connection."""
    for _ in range(0, count, 10):
        frames = b"".join(_some_frame(random) for _ in range(10))
        begin = random.choice(
            (_PREFACE + _SETTINGS, _PREFACE + _SETTINGS, _PREFACE[:12], b"GET / HTTP/1.1\r\n\r\n")
        )
        _said(address, begin + frames)
    return count


def _some_frame(random: Random) -> bytes:
    match random.randrange(5):
        case 0:
            return h2_frame(_HEADERS, _END_HEADERS, random.choice((1, 3, 5, 0, 2)), _call())
        case 1:
            body = random.choice(
                (b"\x01\0\0\0\x05gzip!", b"\0\xff\xff\xff\xff", b"\0\0\0\0\x02\x0a", b"\x07")
            )
            return h2_frame(0, _END_STREAM, random.choice((1, 3, 99)), body)
        case 2:
            return (
                h2_frame(_HEADERS, 0, 1, _call()) + h2_frame(_CONTINUATION, 0, 1, _literal(b"x", b"y")) * 50
            )
        case 3:
            kind = random.choice((_RST_STREAM, _PING, _WINDOW_UPDATE, 4, 5, 7, 200))
            return h2_frame(
                kind, random.randrange(256), random.randrange(9), random.randbytes(random.randrange(20))
            )
        case _:
            return random.randbytes(random.randint(1, 100))


def grpc_resets(address: str, count: int, random: Random) -> int:
    """Calls that are begun and reset at once, a thousand a connection (CVE-2023-44487)."""
    key = ((b"api-key", b"client2"),)
    for _ in range(0, count, 1000):
        streams = range(1, 2000, 2)
        flood = b"".join(
            h2_frame(_HEADERS, _END_HEADERS, stream, _call(b"/imagegen.ImageGen/Ping", *key))
            + h2_frame(_RST_STREAM, 0, stream, b"\0\0\0\x08")
            for stream in streams
        )
        _said(address, _PREFACE + _SETTINGS + flood, listen=False)
    return count


def grpc_calls(address: str, count: int, random: Random) -> int:
    """Through a client library: wrong keys, huge metadata, huge and undecodable requests, cancels."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 1 << 24)]
    with grpc.insecure_channel(urlsplit(f"//{address}").netloc, options) as channel:
        raw = channel.unary_unary("/imagegen.ImageGen/Generate")
        for _ in range(count):
            metadata, body = random.choice(_SAID_BY_LIBRARY)
            with suppress(grpc.RpcError, grpc.FutureCancelledError, grpc.FutureTimeoutError):
                call = raw.future(body(random), metadata=metadata, timeout=ANSWER_LIMIT_S)
                if random.random() < 0.3:
                    call.cancel()
                call.result(timeout=ANSWER_LIMIT_S)
    return count


_KEY: Final = (("api-key", "client2"),)
Body = Callable[[Random], bytes]
_SAID_BY_LIBRARY: Final[tuple[tuple[tuple[tuple[str, str | bytes], ...], Body], ...]] = (
    ((), lambda _: b""),
    ((("api-key", "wrong"),), lambda _: bytes(100)),
    ((*_KEY, *_KEY), lambda _: b""),
    (_KEY, lambda random: random.randbytes(random.randint(1, 300))),
    (_KEY, lambda _: bytes(2 << 20)),
    (_KEY, lambda _: image_gen_pb2.GenerateRequest(prompt="p" * 9000, height=-1).SerializeToString()),
    ((*_KEY, ("idempotency-key", "k" * 200)), lambda _: b""),
    ((*_KEY, ("idempotency-key", "k" * 100_000)), lambda _: b""),
    ((*_KEY, ("on-disconnect", "perhaps"), ("x-bin", b"\xff\0")), lambda _: b""),
    ((*_KEY, *((f"x-{n}", "y" * 50) for n in range(300))), lambda _: b""),
)

Attack = Callable[[str, int, Random], int]
HTTP_ATTACKS: Final[dict[str, tuple[Attack, float]]] = {
    "garbage": (http_garbage, 0.2),
    "pipelines": (http_pipelines, 0.0008),
    "slow": (http_slow, 0.00001),
}
GRPC_ATTACKS: Final[dict[str, tuple[Attack, float]]] = {
    "garbage": (grpc_garbage, 0.4),
    "resets": (grpc_resets, 0.5),
    "calls": (grpc_calls, 0.1),
}
"""What is done to a port, and how often for each frame of the whole."""
