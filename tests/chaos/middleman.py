"""Between peers and their broker: delays messages, so that they overtake each other, and repeats them."""

import heapq
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import zmq

_LOOK_MS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From one peer to the broker, or back."""

    socket: "zmq.Socket[bytes]"
    route: tuple[bytes, ...]
    """What stands before a message on this socket."""


@dataclass(frozen=True, slots=True, order=True)
class Letter:
    due_at: float
    number: int
    """In the order in which they were sent."""
    way: Way
    frames: Sequence[bytes]


class Middleman:
    """Listens where the peers look for their broker, and has a connection to it for each of theirs."""

    def __init__(self, listens_on: str, broker_at: str, *, longest_delay_s: float = 0.0) -> None:
        self.delivered = 0
        self.overtaken = 0
        """Of these, what arrived after something later on the same way."""
        self._broker_at = broker_at
        self._longest_delay_s = longest_delay_s
        self._chance = random.Random(1)
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._peers = self._socket(zmq.ROUTER)
        self._peers.bind(listens_on)
        self._to_broker: dict[bytes, Way] = {}
        self._to_peer: dict[zmq.Socket[bytes], Way] = {}
        self._numbers = itertools.count()
        self._on_their_way: list[Letter] = []
        self._heard: list[Letter] = []
        self._latest: dict[Way, int] = {}
        self._is_over = threading.Event()
        self._is_to_repeat = threading.Event()
        self._thread = threading.Thread(target=self._run, name="middleman")

    def _socket(self, kind: zmq.SocketType) -> "zmq.Socket[bytes]":
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def say_all_again(self) -> None:
        """Whatever was said until now, in its order, to those who have heard it before."""
        self._is_to_repeat.set()

    @property
    def has_said_all(self) -> bool:
        return not self._is_to_repeat.is_set()

    def _run(self) -> None:
        while not self._is_over.is_set():
            for socket, _ in self._poller.poll(_LOOK_MS):
                self._take(socket)
            if self._is_to_repeat.is_set():
                for letter in tuple(self._heard):
                    self._send(letter)
                self._is_to_repeat.clear()
            while self._on_their_way and self._on_their_way[0].due_at <= time.monotonic():
                self._deliver(heapq.heappop(self._on_their_way))

    def _take(self, socket: "zmq.Socket[bytes]") -> None:
        frames = socket.recv_multipart()
        if socket is self._peers:
            route, *frames = frames
            way = self._to_broker.get(route) or self._connect(route)
        else:
            way = self._to_peer[socket]
        due_at = time.monotonic() + self._chance.uniform(0, self._longest_delay_s)
        letter = Letter(due_at, next(self._numbers), way, frames)
        self._heard.append(letter)
        heapq.heappush(self._on_their_way, letter)

    def _connect(self, route: bytes) -> Way:
        socket = self._socket(zmq.DEALER)
        socket.connect(self._broker_at)
        self._to_peer[socket] = Way(socket=self._peers, route=(route,))
        self._to_broker[route] = Way(socket=socket, route=())
        return self._to_broker[route]

    def _deliver(self, letter: Letter) -> None:
        self.overtaken += letter.number < self._latest.get(letter.way, -1)
        self._latest[letter.way] = max(letter.number, self._latest.get(letter.way, -1))
        self.delivered += self._send(letter)

    @staticmethod
    def _send(letter: Letter) -> bool:
        try:
            letter.way.socket.send_multipart([*letter.way.route, *letter.frames], zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True
