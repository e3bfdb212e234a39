"""Hostile peers on ZeroMQ sockets: of a broker, and, as a broker, of its frontends and workers."""

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import islice
from random import Random
from typing import Final
from urllib.parse import urlsplit

import zmq
from fuzz.damage import damaged
from fuzz.wire_targets import example_messages

from proto.codec import MAX_HEADER_BYTES, ProtocolViolation, decode, encode
from proto.failures import RefusalReason
from proto.messages import Refuse, Start, Submit, WorkerPhase, WorkerReport

SEND_LIMIT_MS: Final = 300_000
MESSAGES_A_LIFE: Final = 2000
"""Then another peer goes on."""
PARTS: Final = 100_000
HALF_OPEN: Final = 200
"""Raw connections at the same time."""
DENIED: Final = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(22, b"\0") + bytes(33)
"""ZMTP 3.0 (RFC 23), 64 bytes with the first ten."""
QUIET_MS: Final = 1000
"""Without another answer: whoever is slower than that loses the rest of what was sent."""
QUESTION: Final = [b"FLX1\x02\x01\0\0", b"\x80"]
"""Of another version: that is always answered."""
Options = Mapping[str, bytes]


def hostile_frames(count: int, random: Random) -> Iterator[list[bytes]]:
    """Damaged messages, whole ones that are another role's, and every tenth the last one again."""
    whole = [[bytes(frame) for frame in encode(message)] for message in example_messages()]
    last = [b""]
    made = 0
    while made < count:
        frames = last if made % 10 == 9 else damaged(random.choice(whole), random)
        if not _is_obeyed(frames):
            last = frames
            made += 1
            yield frames


def _is_obeyed(frames: list[bytes]) -> bool:
    """Whoever has a key may say such things, and is believed: nothing protects a service from its members."""
    try:
        message = decode(frames)
    except ProtocolViolation:
        return False
    match message:
        case Submit() | Start() | Refuse(reason=RefusalReason.SUPERSEDED):
            return True
        case WorkerReport(phase=phase):
            return phase is WorkerPhase.READY
        case _:
            return False


@contextmanager
def _peer(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, options: Options
) -> Iterator["zmq.Socket[bytes]"]:
    made = context.socket(kind)
    made.set(zmq.LINGER, 0)
    made.set(zmq.SNDTIMEO, SEND_LIMIT_MS)
    for name, value in options.items():
        made.set(getattr(zmq, name.upper()), value)
    with closing(made):
        yield made


def flood(endpoint: str, count: int, random: Random, options: Options) -> int:
    """Malformed, replayed, of other versions and roles; nobody reads what is answered."""
    sent = 0
    with zmq.Context() as context:
        frames = hostile_frames(count, random)
        while life := list(islice(frames, MESSAGES_A_LIFE)):
            with _peer(context, zmq.DEALER, options) as peer:
                peer.connect(endpoint)
                for each in life:
                    peer.send_multipart(each)
                _drained(peer)
                sent += len(life)
    return sent


def _drained(peer: "zmq.Socket[bytes]") -> None:
    """Until what was sent has arrived: answers end when all was read."""
    peer.send_multipart(QUESTION)
    if not peer.poll(SEND_LIMIT_MS):
        raise AssertionError("another version is not answered")
    while peer.poll(QUIET_MS):
        peer.recv_multipart()


def oversized(endpoint: str, count: int, _random: Random, options: Options) -> int:
    """Larger than its socket takes: libzmq ends the connection."""
    with zmq.Context() as context:
        for _ in range(count):
            with (
                _peer(context, zmq.DEALER, options) as peer,
                closing(peer.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor,
            ):
                peer.connect(endpoint)
                peer.send_multipart([b"FLX1\x01\x01\0\0", bytes(17 * MAX_HEADER_BYTES)])
                if not monitor.poll(SEND_LIMIT_MS):
                    raise AssertionError("a connection outlives a message that is larger than any")
                peer.disable_monitor()
    return count


def endless(endpoint: str, count: int, _random: Random, options: Options) -> int:
    """Messages of 100,000 parts."""
    with zmq.Context() as context:
        for _ in range(count):
            with _peer(context, zmq.DEALER, options) as peer:
                peer.connect(endpoint)
                for _ in range(PARTS):
                    peer.send(b"part", zmq.SNDMORE)
                peer.send(b"the last")
                _drained(peer)
    return count * PARTS


def greetings(endpoint: str, count: int, random: Random, _options: Options) -> int:
    """Raw connections: half-open, garbage, and identities that others have."""
    where = urlsplit(endpoint)
    made = 0
    while made < count:
        opened = [_raw(str(where.hostname), int(where.port or 0)) for _ in range(HALF_OPEN)]
        for each in opened:
            with suppress(OSError):
                each.sendall(_opening(random))
            made += 1
        for each in opened:
            each.close()
    return made


def _raw(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=60)


def _opening(random: Random) -> bytes:
    match random.randrange(5):
        case 0:
            return GREETING[: random.randint(0, 64)]
        case 1:
            return random.randbytes(random.randint(1, 200))
        case 2:
            return GREETING + b"\x04\xff\xff\xff\xff\xff\xff\xff\xff"
        case 3:
            return GREETING + _ready(b"\0" + b"\x6b\x8b\x45" + bytes([random.randrange(0x60, 0x80)]))
        case _:
            return GREETING + _ready(b"") + b"\x06" + (2**63 - 1).to_bytes(8) + b"x"


def _ready(identity: bytes) -> bytes:
    """The command READY of a DEALER with this identity; that of another peer is `\\0` and four bytes."""
    pairs = _property(b"Socket-Type", b"DEALER") + _property(b"Identity", identity)
    body = b"\x05READY" + pairs
    return b"\x04" + bytes([len(body)]) + body


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


class HostileBroker:
    """Bound where a worker and a frontend look for their second broker."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.SNDTIMEO, 1000)
        self._socket.bind(endpoint)

    def flood(self, count: int, random: Random) -> int:
        """At whoever is connected; peers come back when they have heard nothing that counts for 3 s."""
        sent = 0
        frames = hostile_frames(count, random)
        route = self._next_route()
        while sent < count:
            try:
                self._socket.send_multipart([route, *next(frames, [b""])])
                sent += 1
                if sent % 500 == 0:
                    route = self._next_route(wait_ms=0) or route
            except zmq.ZMQError:  # it has gone, or takes nothing now
                route = self._next_route()
        return sent

    def _next_route(self, wait_ms: int = 30_000) -> bytes:
        """Of the peer that spoke last."""
        route = b""
        if self._socket.poll(wait_ms):
            with suppress(zmq.Again):
                while True:
                    route = self._socket.recv_multipart(zmq.NOBLOCK)[0]
        return route

    def close(self) -> None:
        self._socket.close()
        self._context.term()


Attack = Callable[[str, int, Random, Options], int]
ATTACKS: Final[dict[str, tuple[Attack, float]]] = {
    "malformed": (flood, 1.0),
    "oversized": (oversized, 0.0005),
    "endless parts": (endless, 0.00003),
    "greetings": (greetings, 0.05),
}
"""What is done to a socket, and how often for each frame of the whole."""


def strangers(endpoint: str, count: int, options: Options, without_key: Options) -> int:
    """Connections that an encrypted broker must deny: an unknown key, and no key."""
    with zmq.Context() as context:
        for number in range(count):
            with _peer(context, zmq.DEALER, options if number % 2 else without_key) as peer:
                peer.set(zmq.SNDTIMEO, 0)
                peer.set(zmq.HANDSHAKE_IVL, 2000)
                with closing(peer.get_monitor_socket(DENIED)) as monitor:
                    peer.connect(endpoint)
                    with suppress(zmq.Again):
                        peer.send_multipart([b"FLX1\x01\x01\0\0", b"\x80"])
                    monitor.poll(5000)
                    peer.disable_monitor()
    return count
