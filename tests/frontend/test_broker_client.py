"""The desk's shell, in front of a socket that plays the broker."""

import asyncio

import pytest
import zmq
import zmq.asyncio
from samples.wire import EPOCH, PARAMETERS, frontend_view, identifier, image_outcome, worker_view

from frontend.actions import ImageDelivered, JobRefused
from frontend.broker_client import BrokerClient
from frontend.events import JobOpened
from frontend.settings import FrontendSettings
from frontend.validation import ValidJob
from proto.codec import decode, encode
from proto.failures import RefusalReason
from proto.messages import FrontendReport, Snapshot, SnapshotRequest, Submit

EXECUTION = identifier("execution")


class Broker:
    """Says what a test has it say."""

    def __init__(self, limit_s):
        self._limit_s = limit_s
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._route = b""

    async def hears(self, kind):
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(self._limit_s):
            while True:
                self._route, *frames = await self._socket.recv_multipart()
                if isinstance(message := decode(frames), kind):
                    return message

    async def says(self, message):
        await self._socket.send_multipart([self._route, *encode(message)])

    def close(self):
        self._context.destroy(linger=0)


@pytest.fixture
async def broker(limit_s):
    broker = Broker(limit_s)
    yield broker
    broker.close()


@pytest.fixture
async def client(broker):
    """It has reported, so that its connection is there."""
    settings = FrontendSettings(api_keys="key", broker_endpoints=(broker.endpoint,))
    client = BrokerClient(settings, lambda _ready: None)
    await client.start()
    await broker.hears(object)
    yield client
    await client.close()


def opened(**changes):
    job = ValidJob(prompt="a cat", parameters=PARAMETERS, digest=identifier("digest"))
    fields = {"job_id": identifier("job"), "key_fingerprint": "key", "job": job, "time_remaining_s": 60.0}
    return JobOpened(**{**fields, **changes})


async def test_a_job_is_submitted_with_all_that_its_call_said_and_comes_back(client, broker):
    draw = asyncio.create_task(client.draw(opened(idempotency_hash=identifier("hash"), detach=True)))
    submit = await broker.hears(Submit)
    assert (submit.claim.job_id, submit.claim.key_fingerprint) == (identifier("job"), "key")
    assert (submit.claim.idempotency_hash, submit.claim.detach) == (identifier("hash"), True)
    await broker.says(image_outcome(EXECUTION))
    assert isinstance(await draw, ImageDelivered)


async def test_what_was_dropped_is_in_the_picture(client, broker):
    assert "frontend_violations" not in (await client.service_picture()).own_shed
    draw = asyncio.create_task(client.draw(opened()))
    await broker.hears(Submit)
    await broker.says(worker_view())
    await broker.says(image_outcome(EXECUTION))
    await draw
    shed = (await client.service_picture()).own_shed
    assert shed["frontend_violations"] == 1


async def test_messages_that_no_broker_took_are_counted_but_for_reports(limit_s):
    settings = FrontendSettings(api_keys="key", broker_endpoints=("tcp://127.0.0.1:1",))
    client = BrokerClient(settings, lambda _ready: None)
    await client.start()
    try:
        assert (await client.service_picture()).own_shed == {}
        draw = asyncio.create_task(client.draw(opened()))
        await asyncio.sleep(0)
        assert (await client.service_picture()).own_shed == {"frontend_unsent_messages": 1}
        draw.cancel()
    finally:
        await client.close()


async def test_closing_answers_who_waits_with_a_time_to_come_again(client, broker):
    draw = asyncio.create_task(client.draw(opened()))
    await broker.hears(Submit)
    await broker.says(frontend_view(epoch=EPOCH))
    await client.close()
    end = await draw
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.FRONTEND_DRAINING
    assert end.retry_after_s


async def test_a_call_that_comes_after_closing_is_refused_at_once(client, limit_s):
    await client.close()
    async with asyncio.timeout(limit_s):
        end = await client.draw(opened())
    assert isinstance(end, JobRefused)
    assert end.reason is RefusalReason.FRONTEND_DRAINING
    assert end.retry_after_s


async def test_a_picture_has_what_each_broker_says_and_waits_for_those_that_are_there(limit_s, monkeypatch):
    monkeypatch.setattr("frontend.broker_client.SNAPSHOT_LIMIT_S", limit_s)
    brokers = [Broker(limit_s), Broker(limit_s)]
    endpoints = (*(broker.endpoint for broker in brokers), "tcp://127.0.0.1:1")
    client = BrokerClient(FrontendSettings(api_keys="key", broker_endpoints=endpoints), lambda _ready: None)
    await client.start()
    playing = [asyncio.create_task(plays(broker, number)) for number, broker in enumerate(brokers)]
    try:
        await until_seen(standings, client, ["LIVE", "LIVE", "UNHEARD"], limit_s)
        seen = (await client.service_picture()).brokers
        assert [broker.broker_id for broker in seen] == ["b0", "b1", ""]
        assert [broker.snapshot and broker.snapshot.broker_id for broker in seen] == ["b0", "b1", None]
        assert [broker.gets_calls for broker in seen] == [True, False, False]
    finally:
        for task in playing:
            task.cancel()
        await client.close()
        for broker in brokers:
            broker.close()


async def until_seen(look, client, wanted, limit_s):
    """A picture is asked for each time: there is nobody who could set an event."""
    async with asyncio.timeout(limit_s):
        while await look(client) != wanted:  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.01)


async def standings(client):
    return [broker.standing.name for broker in (await client.service_picture()).brokers]


async def plays(broker, number, *, has_pictures=True):
    """Answers each report and each request for a picture."""
    epoch = identifier(number)
    while True:
        match await broker.hears(object):
            case FrontendReport():
                view = frontend_view(epoch=epoch, broker_id=f"b{number}", heartbeat_interval_ms=50)
                await broker.says(view)
            case SnapshotRequest(seq=seq) if has_pictures:
                await broker.says(snapshot(f"b{number}", epoch, seq))


def snapshot(broker_id, epoch, echo):
    numbers = dict.fromkeys(("in_flight", "queued", "completed", "failed", "cancelled"), 0)
    return Snapshot(broker_id=broker_id, epoch=epoch, echo=echo, rejected={}, **numbers)


async def test_of_a_broker_with_two_endpoints_no_dead_life_stays(limit_s):
    """The second is asked for a picture only where it answers before the first."""
    first, second = Broker(limit_s), Broker(limit_s)
    settings = FrontendSettings(api_keys="key", broker_endpoints=(first.endpoint, second.endpoint))
    client = BrokerClient(settings, lambda _ready: None)

    await client.start()
    playing = [asyncio.create_task(plays(second, 1))]
    try:
        await until_seen(lives, client, [identifier(1)], limit_s)
        playing.append(asyncio.create_task(plays(first, 1)))
        await until_seen(standings, client, ["LIVE", "SILENT"], limit_s)
        for task in playing:
            task.cancel()
        # As if nobody had asked in the moment in which the second was not known for the first's yet.
        playing = [
            asyncio.create_task(plays(first, 2)),
            asyncio.create_task(plays(second, 2, has_pictures=False)),
        ]
        await until_seen(lives, client, [identifier(2)], limit_s)
    finally:
        for task in playing:
            task.cancel()
        await client.close()
        first.close()
        second.close()


async def lives(client):
    return [life.snapshot.epoch for life in (await client.service_picture()).lives()]
