"""The broker on real sockets, with peers that may say anything."""

import asyncio
import contextlib
import errno
import os
import socket
import sys

import pytest
import zmq
from samples.wire import (
    frontend_report,
    frontend_view,
    identifier,
    image_outcome,
    running,
    snapshot_request,
    start,
    submit,
    worker_report,
    worker_view,
)

from broker.__main__ import main
from broker.router import CannotBind, Router
from broker.settings import BrokerSettings
from proto.codec import MAX_HEADER_BYTES, decode, encode
from proto.exit_status import EXIT_CANNOT_START
from proto.failures import RefusalReason
from proto.messages import FrontendView, Outcome, Refuse, Snapshot, Start, WorkerView

MIB = 1024 * 1024


def settings(folder, **changes):
    fields = {
        "workers_endpoint": f"ipc://{folder}/workers",
        "frontends_endpoint": f"ipc://{folder}/frontends",
    }
    return BrokerSettings(**{**fields, **changes})


@pytest.fixture
async def router(folder):
    router = Router(settings(folder, time_scale=0.1))
    yield router
    router.close()


@pytest.fixture
def worker(router, folder, raw):
    return raw(zmq.DEALER, f"ipc://{folder}/workers")


@pytest.fixture
def frontend(router, folder, raw):
    return raw(zmq.DEALER, f"ipc://{folder}/frontends")


async def test_an_image_finds_its_way(worker, frontend):
    png = os.urandom(3 * MIB)
    await frontend.say(submit(seq=1, body="a cät".encode()))
    started = await start_of_a_new_broker(worker, frontend)
    assert bytes(started.body) == "a cät".encode()
    await worker.say(worker_report(seq=1001, running=running(started.execution_id)))
    await worker.say(image_outcome(started.execution_id, seq=1002, body=png))
    outcome = await frontend.hear(Outcome)
    assert bytes(outcome.body) == png
    await frontend.say(frontend_report(seq=1001))
    async with asyncio.timeout(15):
        while (await frontend.hear(FrontendView)).echo != 1001:
            pass


async def start_of_a_new_broker(worker, frontend):
    """It waits for its peers first, who have to go on reporting."""
    for seq in range(2, 1000):
        await worker.say(worker_report(seq=seq))
        await frontend.say(frontend_report("job", seq=seq))
        while await worker.socket.poll(50):
            message = decode(await worker.receive())
            if isinstance(message, Start):
                return message
    raise AssertionError("no START")


GARBAGE = {
    "one frame": [b""],
    "no prefix": [b"", b""],
    "rubbish": [b"rubbish", b"rubbish", b"rubbish"],
    "many frames": [b"FLX1"] * 9,
    "a bad header": [encode(worker_report())[0], b"\xc1"],
    "an empty header": [encode(worker_report())[0], b"\x80"],
    "a deep header": [encode(worker_report())[0], b"\x81\xa3seq" + b"\x91" * 200_000],
    "a stray body": [*encode(worker_report()), b"body"],
    "a missing body": encode(submit())[:2],
    "an unknown command": [b"FLX1\x01\xee\0\0", b"\x80"],
    "a prompt that is no text": [*encode(submit())[:2], b"\xff"],
    "a prompt that is too long": [*encode(submit())[:2], b"p" * 8193],
    "a view": encode(worker_view()),
    "another view": encode(frontend_view()),
    "a start": encode(start()),
}


@pytest.mark.parametrize("role", ["worker", "frontend"])
async def test_garbage_is_dropped_and_counted_while_others_are_served(
    router, worker, frontend, folder, raw, until, role
):
    hostile = raw(zmq.DEALER, f"ipc://{folder}/{role}s")
    log = router._violations[role]
    for count, frames in enumerate(GARBAGE.values(), 1):
        await hostile.send(*frames)
        await until(lambda count=count: log.total == count)
        await frontend.say(snapshot_request(count))
        assert (await frontend.hear(Snapshot)).echo == count
    await worker.say(worker_report())
    assert (await worker.hear(WorkerView)).echo == 1
    # Even the one who sent it is not punished.
    if role == "worker":
        await hostile.say(worker_report("other"))
        assert await hostile.hear(WorkerView)
    else:
        await hostile.say(snapshot_request(99))
        assert (await hostile.hear(Snapshot)).echo == 99


@pytest.mark.parametrize(
    ("role", "messages"),
    [
        ("frontend", [worker_report(), image_outcome(identifier("e"))]),
        ("worker", [frontend_report(), submit(), snapshot_request()]),
    ],
)
async def test_a_command_of_the_other_role_is_dropped_and_counted(router, folder, raw, until, role, messages):
    peer = raw(zmq.DEALER, f"ipc://{folder}/{role}s")
    for message in messages:
        await peer.say(message)
    await until(lambda: router._violations[role].total == len(messages))


@pytest.mark.parametrize("version", [0, 2, 255])
@pytest.mark.parametrize("role", ["worker", "frontend"])
async def test_another_version_is_answered(router, folder, raw, role, version):
    peer = raw(zmq.DEALER, f"ipc://{folder}/{role}s")
    await peer.send(b"FLX1" + bytes([version, 1, 0, 0]), b"whatever")
    refuse = await peer.hear(Refuse)
    assert refuse.reason is RefusalReason.VERSION_MISMATCH
    assert "version 1" in refuse.detail


async def test_a_peer_that_never_reads_slows_nobody_down(frontend, folder, raw):
    stuck = raw(zmq.DEALER, f"ipc://{folder}/frontends", rcvhwm=1, rcvbuf=4096)
    for n in range(20):
        for _ in range(500):
            await stuck.say(snapshot_request())
        await frontend.say(snapshot_request(n))
        picture = await frontend.hear(Snapshot)
        assert picture.echo == n
        if picture.shed.get("unsent_messages"):
            return
    raise AssertionError("nothing was ever too much for it")


async def test_a_message_larger_than_any_ends_its_connection_alone(frontend, folder, raw):
    hostile = raw(zmq.DEALER, f"ipc://{folder}/frontends")
    await hostile.send(encode(submit())[0], bytes(MAX_HEADER_BYTES + 1))
    for n in range(5):
        await frontend.say(snapshot_request(n))
        assert (await frontend.hear(Snapshot)).echo == n
    # Its next connection is as good as any; what it says before it has noticed the end is lost.
    async with asyncio.timeout(15):
        while True:
            await hostile.say(snapshot_request(7))
            if await hostile.socket.poll(100):
                break
    assert (await hostile.hear(Snapshot)).echo == 7


async def test_a_worker_whose_connection_is_gone_is_lost(worker, frontend):
    await worker.say(worker_report())
    await worker.hear(WorkerView)
    await frontend.say(frontend_report(seq=1))
    assert (await frontend.hear(FrontendView)).ready_workers == 1
    worker.close()
    async with asyncio.timeout(15):
        states = ["ready"]
        while states == ["ready"]:
            await frontend.say(snapshot_request())
            states = [row.state for row in (await frontend.hear(Snapshot)).workers]
    assert states == ["lost"]


async def test_a_draining_broker_says_so_before_it_ends(router, frontend):
    await frontend.say(frontend_report())
    await frontend.hear(FrontendView)
    draining = asyncio.create_task(router.drain())
    assert (await frontend.hear(FrontendView)).draining
    await draining


async def test_a_draining_broker_stays_for_its_jobs_if_it_may(folder, raw, monkeypatch):
    monkeypatch.setattr("broker.router.FAREWELL_S", 0.0)
    with contextlib.closing(Router(settings(folder, is_first=True))) as router:
        worker, frontend = (raw(zmq.DEALER, f"ipc://{folder}/{role}") for role in ("workers", "frontends"))
        await worker.say(worker_report())
        await worker.hear(WorkerView)
        await frontend.say(submit(seq=1))
        started = await worker.hear(Start)
        draining = asyncio.create_task(router.drain(limit_s=60))
        while not (await frontend.hear(FrontendView)).draining:
            pass
        await worker.say(image_outcome(started.execution_id, seq=2))
        await frontend.hear(Outcome)
        assert not draining.done()
        await frontend.say(frontend_report(seq=2))
        async with asyncio.timeout(15):
            await draining


# --- Endpoints ---------------------------------------------------------------------------------


async def test_a_port_that_is_taken(folder, tcp_endpoint, raw):
    raw(zmq.ROUTER, tcp_endpoint, bind=True)
    with pytest.raises(CannotBind) as caught:
        Router(settings(folder, frontends_endpoint=tcp_endpoint))
    assert str(caught.value) == f"frontends_endpoint: cannot listen on {tcp_endpoint}: Address already in use"


async def test_an_address_that_the_host_does_not_have_is_told_as_that(folder):
    changes = {"workers_endpoint": "tcp://nosuch:5555", "insecure_allow_unencrypted_network": True}
    with pytest.raises(CannotBind) as caught:
        Router(settings(folder, **changes))
    assert str(caught.value).endswith("nosuch:5555: this host has no such address or network interface")


@pytest.fixture
async def start_broker(folder):
    """Starts a broker as a process: ZeroMQ's sockets of one process end together."""
    arguments = [f"--{role}-endpoint=ipc://{folder}/{role}" for role in ("workers", "frontends")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = []

    async def start():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", *arguments, env=environment, stderr=asyncio.subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_live_brokers_path_is_not_taken_over(start_broker, folder, raw):
    first = await start_broker()
    early = raw(zmq.DEALER, f"ipc://{folder}/frontends")
    await early.say(snapshot_request(1))
    assert (await early.hear(Snapshot)).echo == 1
    second = await start_broker()
    _, said = await asyncio.wait_for(second.communicate(), 30)
    assert second.returncode == EXIT_CANNOT_START
    assert b"another process listens there" in said
    late = raw(zmq.DEALER, f"ipc://{folder}/frontends")
    await late.say(snapshot_request(2))
    assert (await late.hear(Snapshot)).echo == 2, "the first one is still there"
    # What a killed one leaves behind is in nobody's way.
    first.kill()
    await first.communicate()
    await start_broker()
    fresh = raw(zmq.DEALER, f"ipc://{folder}/frontends")
    await fresh.say(snapshot_request(3))
    assert (await fresh.hear(Snapshot)).echo == 3


async def test_a_file_that_is_no_socket_stays(folder):
    precious = folder / "workers"
    precious.write_text("precious")
    with pytest.raises(CannotBind, match="not a socket"):
        Router(settings(folder))
    assert precious.read_text() == "precious"


async def test_a_folder_that_is_missing(folder):
    with pytest.raises(CannotBind, match="/missing/workers: No such file or directory"):
        Router(settings(folder, workers_endpoint=f"ipc://{folder}/missing/workers"))


async def test_one_path_for_both_roles(folder):
    with pytest.raises(CannotBind, match="another process listens there"):
        Router(
            settings(folder, workers_endpoint=f"ipc://{folder}/one", frontends_endpoint=f"ipc://{folder}/one")
        )


async def test_the_socket_of_another_user(folder, monkeypatch):
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"{folder}/theirs")
    monkeypatch.setattr("socket.socket.connect_ex", lambda _self, _path: errno.EACCES)
    with pytest.raises(CannotBind, match="a socket that this user may not connect to"):
        Router(settings(folder, workers_endpoint=f"ipc://{folder}/theirs"))


def test_the_process_says_why_it_cannot_start(folder, capsys, monkeypatch):
    monkeypatch.setattr("broker.__main__.configure_logging", lambda *_: None)
    argv = [f"--workers-endpoint=ipc://{folder}/missing/w", f"--frontends-endpoint=ipc://{folder}/f"]
    assert main(argv) == EXIT_CANNOT_START
    said = capsys.readouterr().err.splitlines()
    assert (
        said[-1]
        == f"broker: workers_endpoint: cannot listen on ipc://{folder}/missing/w: No such file or directory"
    )
