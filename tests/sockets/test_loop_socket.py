"""A ZeroMQ socket on the loop: everything arrives, and nothing ever waits."""

import asyncio
import itertools
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from proto.loop_reader import PARTS_MAX
from proto.sockets import HIGH_WATER_MARK, SendResult

BURST = 3000
FLOODED = Path(__file__).with_name("flooded.py")
AT_ONCE_S = 5.0
"""For a call that must not wait for anybody."""


def joined(frames):
    return b"".join(bytes(frame) for frame in frames)


@pytest.fixture(params=["ipc", "tcp"])
def any_endpoint(request, endpoint, tcp_endpoint):
    return endpoint if request.param == "ipc" else tcp_endpoint


async def test_a_burst_arrives_whole_and_in_order(any_endpoint, loop_socket, raw, until):
    received = []
    loop_socket(zmq.ROUTER, lambda frames: received.append(joined(frames[1:]))).bind(any_endpoint)
    peer = raw(zmq.DEALER, any_endpoint, sndhwm=0)
    for n in range(BURST):
        await peer.send(b"%d" % n)
    await until(lambda: len(received) == BURST)
    assert received == [b"%d" % n for n in range(BURST)]


async def test_bursts_with_answers_in_between_leave_nothing_lying(endpoint, loop_socket, raw, until):
    """The descriptor is edge-triggered: each send may swallow the sign that something has come."""
    results = []
    router = loop_socket(zmq.ROUTER, lambda frames: results.append(router.send(frames)))
    router.bind(endpoint)
    peer = raw(zmq.DEALER, endpoint)
    for round_number in range(20):
        count = 1 + round_number * 7 % 40
        for n in range(count):
            await peer.send(b"%d" % n)
        for n in range(count):
            assert await peer.receive() == [b"%d" % n]
    assert set(results) == {SendResult.SENT}


async def test_a_send_that_swallows_the_sign_of_a_message_does_not_lose_it(endpoint, loop_socket, raw, until):
    received = []
    router = loop_socket(zmq.ROUTER, received.append)
    router.bind(endpoint)
    peer = raw(zmq.DEALER, endpoint)
    await peer.send(b"0")
    await until(lambda: received)
    route = bytes(received[0][0])
    for n in range(1, 20):
        await peer.send(b"%d" % n)
        # Without a turn of the loop between the sign and the send.
        assert len(received) > n or select.select([router._reader._fd], [], [], 15)[0]
        assert router.send([route, b"swallows"]) is SendResult.SENT
        await until(lambda n=n: len(received) == n + 1)
        assert await peer.receive() == [b"swallows"]


async def test_a_burst_does_not_keep_the_loop_from_others(endpoint, loop_socket, raw, until):
    received, turns = [], []
    loop = asyncio.get_running_loop()

    def take_turn():
        turns.append(len(received))
        if len(received) < BURST:
            loop.call_soon(take_turn)

    router = loop_socket(zmq.ROUTER, received.append)
    peer = raw(zmq.DEALER, endpoint, sndhwm=0)
    for n in range(BURST):
        await peer.send(b"%d" % n)
    router.bind(endpoint)
    take_turn()
    await until(lambda: len(received) == BURST)
    taken = [after - before for before, after in itertools.pairwise(turns)]
    assert max(taken) <= 2 * HIGH_WATER_MARK


async def test_of_a_message_with_endless_parts_the_first_ones_are_kept(endpoint, loop_socket, raw, until):
    received = []
    loop_socket(zmq.ROUTER, received.append).bind(endpoint)
    peer = raw(zmq.DEALER, endpoint)
    await peer.send(*[b"%d" % n for n in range(10_000)])
    await peer.send(b"next")
    await until(lambda: len(received) == 2)
    assert [bytes(part) for part in received[0][1:]] == [b"%d" % n for n in range(PARTS_MAX - 1)]
    assert bytes(received[1][1]) == b"next"


async def test_without_a_connection_a_send_fails_at_once(endpoint, loop_socket, raw):
    dealer = loop_socket(zmq.DEALER, lambda _: None)
    dealer.connect(endpoint)
    # One that waits would wait for ever: nobody is there.
    assert [dealer.send([b"lost"]) for _ in range(100)] == [SendResult.QUEUE_FULL] * 100
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    async with asyncio.timeout(15):
        while dealer.send([b"found"]) is not SendResult.SENT:  # noqa: ASYNC110 - there is nobody who could set an event
            await asyncio.sleep(0.01)
    assert (await broker.receive())[1:] == [b"found"], "nothing of what was said before"


async def test_an_unknown_route_is_said_so(endpoint, loop_socket, raw, until):
    routes = []
    router = loop_socket(zmq.ROUTER, lambda frames: routes.append(bytes(frames[0])))
    router.bind(endpoint)
    assert router.send([b"nobody", b"hello"]) is SendResult.UNREACHABLE
    peer = raw(zmq.DEALER, endpoint)
    await peer.send(b"here")
    await until(lambda: routes)
    assert router.send([routes[0], b"hello"]) is SendResult.SENT
    peer.close()
    await until(lambda: router.send([routes[0], b"hello"]) is SendResult.UNREACHABLE)


async def test_a_peer_that_does_not_listen_holds_up_nobody(endpoint, loop_socket, raw, until):
    routes = {}
    router = loop_socket(zmq.ROUTER, lambda frames: routes.setdefault(bytes(frames[1]), bytes(frames[0])))
    router.bind(endpoint)
    deaf = raw(zmq.DEALER, endpoint, rcvhwm=1)
    listener = raw(zmq.DEALER, endpoint)
    await deaf.send(b"deaf")
    await listener.send(b"listener")
    await until(lambda: len(routes) == 2)
    image = bytes(1024 * 1024)
    # A send that waits for the deaf one would wait for ever.
    results = [router.send([routes[b"deaf"], image]) for _ in range(4 * HIGH_WATER_MARK)]
    assert results[-1] is SendResult.QUEUE_FULL
    assert router.send([routes[b"listener"], b"hello"]) is SendResult.SENT
    assert await listener.receive() == [b"hello"]


async def test_a_socket_closed_by_its_own_callback_is_silent(endpoint, loop_socket, raw, until):
    received = []

    def take(frames):
        received.append(frames)
        router.close()

    router = loop_socket(zmq.ROUTER, take)
    peer = raw(zmq.DEALER, endpoint)
    for _ in range(50):
        await peer.send(b"x")
    router.bind(endpoint)
    await until(lambda: received)
    router.close()
    await asyncio.sleep(0)
    assert len(received) == 1


async def test_an_error_in_the_callback_does_not_silence_the_socket(endpoint, loop_socket, raw, until):
    received, errors = [], []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: errors.append(context["exception"])
    )

    def take(frames):
        received.append(bytes(frames[1]))
        if frames[1] == b"2":
            raise ValueError("a bug of ours")

    router = loop_socket(zmq.ROUTER, take)
    peer = raw(zmq.DEALER, endpoint)
    for n in range(5):
        await peer.send(b"%d" % n)
    router.bind(endpoint)
    await until(lambda: len(received) == 5)
    assert [str(error) for error in errors] == ["a bug of ours"]


async def test_a_large_frame_is_good_beyond_the_socket(endpoint, loop_socket, raw, until):
    received = []
    router = loop_socket(zmq.ROUTER, received.append, max_message_bytes=4 * 2**20)
    router.bind(endpoint)
    image = os.urandom(3 * 2**20)
    peer = raw(zmq.DEALER, endpoint)
    await peer.send(b"header", image)
    await until(lambda: received)
    router.close()
    assert [bytes(frame) for frame in received[0][1:]] == [b"header", image]


async def test_a_message_that_is_too_large_ends_its_connection_alone(endpoint, loop_socket, raw, until):
    received = []
    router = loop_socket(
        zmq.ROUTER, lambda frames: received.append(joined(frames[1:])), max_message_bytes=1000
    )
    router.bind(endpoint)
    hostile, other = raw(zmq.DEALER, endpoint), raw(zmq.DEALER, endpoint)
    await other.send(b"before")
    await hostile.send(bytes(1001))
    await until(lambda: b"before" in received)
    await other.send(b"after")
    await until(lambda: b"after" in received)
    assert not any(len(message) > 1000 for message in received)


async def test_closing_does_not_wait(endpoint, loop_socket):
    dealer = loop_socket(zmq.DEALER, lambda _: None)
    dealer.connect(endpoint)
    dealer.send([b"never"])
    began = time.monotonic()
    dealer.close()
    dealer.close()
    assert time.monotonic() - began < AT_ONCE_S


def test_a_process_outlives_a_peer_that_floods_it_and_ends(any_endpoint):
    run = subprocess.run(
        [sys.executable, FLOODED, any_endpoint], timeout=60, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")
