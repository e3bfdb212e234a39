"""A peer's connection to the broker, and what becomes of it when the broker does."""

import asyncio

import pytest
import zmq
from samples.wire import frontend_view, identifier, leave, worker_report, worker_view
from structlog.testing import capture_logs

from proto.broker_link import BrokerLink
from proto.codec import NotForThisRole, decode, encode
from proto.messages import Leave, WorkerReport
from proto.sockets import close_context

MIB = 1024 * 1024


@pytest.fixture
async def link(endpoint):
    """With the list of all messages that it got."""
    received = []
    link = BrokerLink(endpoint, MIB, received.append)
    link.received = received
    yield link
    link.close()
    close_context()


async def say(link, message):
    """Again and again until the connection takes it."""
    async with asyncio.timeout(15):
        while not link.send(message):  # noqa: ASYNC110 - there is nobody who could set an event
            await asyncio.sleep(0.01)


async def test_messages_go_both_ways(link, endpoint, raw, until):
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    await say(link, worker_report())
    route, *frames = await broker.receive()
    assert decode(frames) == worker_report()
    await broker.send(route, *encode(worker_view()))
    await until(lambda: link.received == [worker_view()])


async def test_what_is_no_message_is_dropped_and_the_next_one_heard(link, endpoint, raw, until):
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    await say(link, worker_report())
    route, *_ = await broker.receive()
    for frames in (
        [b""],
        [b"rubbish", b"rubbish"],
        encode(worker_view())[:1],
        [b"FLX1\x09\x01\0\0", b"\x80"],
    ):
        await broker.send(route, *frames)
    await broker.send(route, *encode(frontend_view()))
    await until(lambda: link.received)
    assert link.received == [frontend_view()]


async def test_what_is_for_another_role_is_counted_and_makes_one_line(endpoint, raw, until):
    def refuse(message):
        raise NotForThisRole(message, "for a worker")

    link = BrokerLink(endpoint, MIB, refuse)
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    await say(link, worker_report())
    route, *_ = await broker.receive()
    with capture_logs() as logs:
        for _ in range(100):
            await broker.send(route, *encode(frontend_view()))
        await until(lambda: link.violations == 100)
    link.close()
    close_context()
    (line,) = logs
    assert line["why"] == "command: a FrontendView is not for a worker"


async def test_what_cannot_be_sent_is_dropped_and_counted_unless_it_is_said_again_anyway(link):
    assert not link.send(leave(identifier("worker 1")))
    assert not link.send(leave(identifier("worker 1")))
    assert not link.send(worker_report())
    assert link.dropped == 2


async def first_heard(link, broker, seq):
    """What arrives first of the reports from `seq` on: a connection that ends takes some, and loses them."""
    async with asyncio.timeout(15):
        while True:
            link.send(worker_report(seq=seq))
            seq += 1
            if await broker.socket.poll(20):
                _route, *frames = await broker.receive()
                return decode(frames)


async def test_a_fresh_connection_has_nothing_of_the_old_queue(link, endpoint, raw):
    stuck = raw(zmq.ROUTER, endpoint, bind=True, rcvhwm=1, rcvbuf=4096)
    await say(link, worker_report(seq=1))
    while link.send(worker_report(seq=2, activity="a" * 1000)):
        pass
    link.reconnect()
    stuck.close()
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    assert (await first_heard(link, broker, 3)).seq >= 3


async def test_each_connection_has_a_route_of_its_own(link, endpoint, raw):
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    await say(link, worker_report(seq=1))
    first, *_ = await broker.receive()
    link.reconnect()
    await say(link, worker_report(seq=2))
    second, *_ = await broker.receive()
    assert first != second


async def test_it_finds_a_broker_that_starts_again(link, endpoint, raw):
    first = raw(zmq.ROUTER, endpoint, bind=True)
    await say(link, worker_report(seq=1))
    await first.receive()
    first.close()
    second = raw(zmq.ROUTER, endpoint, bind=True)
    assert isinstance(await first_heard(link, second, 2), WorkerReport)


async def test_the_last_word_gets_away(endpoint, raw):
    broker = raw(zmq.ROUTER, endpoint, bind=True)
    for n in range(20):
        link = BrokerLink(endpoint, MIB, lambda _: None)
        await say(link, worker_report())
        link.send(leave(identifier(n)))
        link.close()
        close_context()
        await broker.receive()
        _route, *frames = await broker.receive()
        message = decode(frames)
        assert isinstance(message, Leave)
        assert message.incarnation == identifier(n)
