"""The attacks come to their end, and say truly how much they sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from threading import Thread

import pytest
import zmq
from fuzz.live import peers

LIMIT_S = 20.0


class Listener:
    """Counts what comes, and answers it."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._socket = context.socket(zmq.ROUTER)
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self.heard = 0

    def listen(self) -> None:
        try:
            while True:
                route = self._socket.recv_multipart()[0]
                self.heard += 1
                self._socket.send_multipart([route, b"heard"])
        except zmq.ContextTerminated:
            self._socket.close()


@contextmanager
def listener() -> Iterator[Listener]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Listener(context)
    thread = Thread(target=made.listen)
    thread.start()
    try:
        yield made
    finally:
        context.term()
        thread.join(LIMIT_S)


def test_a_flood_of_several_peers_sends_what_it_was_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MESSAGES_A_LIFE", 7)
    with listener() as target:
        assert peers.flood(target.endpoint, 20, Random("flood"), {}) == 20
    assert target.heard == 20 + 3, "three peers, and each has its question"


def test_a_flood_that_nobody_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SEND_LIMIT_MS", 50)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as silent:
        port = silent.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(AssertionError, match="not answered"):
            peers.flood(f"tcp://127.0.0.1:{port}", 3, Random("flood"), {})
