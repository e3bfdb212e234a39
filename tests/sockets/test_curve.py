"""Who gets something from an encrypted broker, on real sockets, and what is said about the rest."""

import contextlib

import pytest
import zmq
from samples.curve import key_folder
from samples.wire import frontend_report, worker_report
from structlog.testing import capture_logs

from broker.gatekeeper import MAX_ROUTES, Gatekeeper, RouteGuard
from broker.router import CannotBind, Router
from broker.settings import BrokerSettings
from proto.broker_link import BrokerLink
from proto.codec import encode
from proto.keyring import Keyring
from proto.messages import FrontendView, WorkerView
from proto.sockets import SendResult

MIB = 1024 * 1024
PLAIN = {"plain_username": b"worker", "plain_password": b"worker"}


@pytest.fixture
def logs():
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def keys(folder):
    return key_folder(folder)


@pytest.fixture(params=["ipc", "tcp"])
def endpoints(request, folder):
    """Of workers, and of frontends."""
    if request.param == "ipc":
        return f"ipc://{folder}/workers", f"ipc://{folder}/frontends"
    sockets = [zmq.Context.instance().socket(zmq.PAIR) for _ in range(2)]
    try:
        return tuple(f"tcp://127.0.0.1:{each.bind_to_random_port('tcp://127.0.0.1')}" for each in sockets)
    finally:
        for each in sockets:
            each.close(linger=0)
        zmq.Context.instance().term()


@pytest.fixture
def gatekeeper(keys):
    return Gatekeeper(keys.secret_file("broker"), keys.authorized_keys)


@pytest.fixture
async def router(endpoints, gatekeeper, logs):
    settings = BrokerSettings(workers_endpoint=endpoints[0], frontends_endpoint=endpoints[1], time_scale=0.1)
    router = Router(settings, gatekeeper)
    yield router
    router.close()


def turned_away(logs):
    return [line for line in logs if line["event"] == "peer turned away"]


async def answered(peer, message, kind):
    """Until the broker answers; it repeats nothing of its own."""
    for _ in range(300):
        await peer.say(message)
        if await peer.socket.poll(50):
            return await peer.hear(kind)
    raise AssertionError("no answer")


async def shout(peer, message):
    """To whomever; libzmq may have given the connection up by now."""
    with contextlib.suppress(zmq.Again):
        await peer.socket.send_multipart(encode(message), zmq.NOBLOCK)


async def test_listed_keys_are_served_in_their_roles(router, endpoints, keys, raw, logs):
    worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    frontend = raw(zmq.DEALER, endpoints[1], **keys.options("frontend"))
    await answered(worker, worker_report(), WorkerView)
    await answered(frontend, frontend_report(), FrontendView)
    admitted = [(line["role"], line["name"]) for line in logs if line["event"] == "peer admitted"]
    assert sorted(admitted) == [("frontend", "frontend"), ("worker", "worker")]
    assert not turned_away(logs)


STRANGERS = {
    "an unknown key": (lambda keys: keys.options("stranger"), {"its key is not in authorized_keys_file"}),
    "a frontend's key": (lambda keys: keys.options("frontend"), {"it is frontend frontend"}),
    "another broker's friend": (
        lambda keys: keys.options("worker", broker="other_broker"),
        {"it expects another key of this broker (known_brokers_file)"},
    ),
    # Which of the two sides notices first is chance.
    "no encryption": (
        lambda _: {},
        {"it does not encrypt", "it did not finish the handshake: it may not encrypt"},
    ),
    "a password": (
        lambda _: PLAIN,
        {"it does not encrypt", "it did not finish the handshake: it may not encrypt"},
    ),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_strangers_get_nothing_and_the_log_says_so(router, endpoints, keys, raw, logs, until, stranger):
    options, reasons = STRANGERS[stranger]
    hostile = raw(zmq.DEALER, endpoints[0], **options(keys))
    await shout(hostile, worker_report("hostile"))
    await until(lambda: turned_away(logs))
    line = turned_away(logs)[0]
    assert line["role"] == "worker"
    assert line["why"] in reasons
    worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    await answered(worker, worker_report(), WorkerView)
    assert not await hostile.socket.poll(0)
    names = [peer.worker_id for peer in router._mailbox._core.state.workers]
    assert names == [worker_report().worker_id]


async def test_an_unknown_key_is_shown_in_part_with_its_address(router, endpoints, keys, raw, logs, until):
    raw(zmq.DEALER, endpoints[0], **keys.options("stranger"))
    await until(lambda: turned_away(logs))
    line = turned_away(logs)[0]
    assert line["key"] == f"{keys.pairs['stranger'].public[:8]}…"
    assert line["address"].startswith("127.0.0.1" if endpoints[0].startswith("tcp") else "localhost:")


async def test_a_peer_that_insists_makes_one_line(router, endpoints, keys, raw, logs, until):
    for count in (1, 2, 3):
        raw(zmq.DEALER, endpoints[0], **keys.options("stranger"))
        await until(lambda count=count: router._turned_away.total >= count)
    assert len(turned_away(logs)) == 1
    assert router._shed()["turned_away"] >= 3


def nobody_authenticates():
    with zmq.Context.instance().socket(zmq.REP) as socket:
        try:
            socket.bind("inproc://zeromq.zap.01")
        except zmq.ZMQError:
            return False
    return True


async def test_without_its_authenticator_nobody_is_admitted(router, endpoints, keys, raw, logs, until):
    router._authenticator.close()
    await until(nobody_authenticates)
    worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    await shout(worker, worker_report())
    await until(lambda: turned_away(logs))
    assert "the authenticator is gone" in turned_away(logs)[0]["why"]
    assert not await worker.socket.poll(0)
    assert not router._mailbox._core.state.workers


async def test_whom_it_cannot_judge_it_denies_and_judges_the_next(
    router, endpoints, keys, raw, logs, until, gatekeeper, monkeypatch
):
    def fail(*_who):
        raise RuntimeError("no list")

    with monkeypatch.context() as patch:
        patch.setattr(router._authenticator, "_welcomes", fail)
        worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
        await shout(worker, worker_report())
        await until(lambda: [line for line in logs if line["event"].startswith("a peer could not be judged")])
    assert not await worker.socket.poll(0)
    successor = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    await answered(successor, worker_report(), WorkerView)


async def test_a_second_broker_in_one_process_cannot_take_the_authenticators_place(
    router, folder, gatekeeper
):
    settings = BrokerSettings(
        workers_endpoint=f"ipc://{folder}/w2", frontends_endpoint=f"ipc://{folder}/f2", time_scale=0.1
    )
    with pytest.raises(CannotBind, match="authenticator"):
        Router(settings, gatekeeper)


async def test_a_key_that_is_added_is_admitted(router, endpoints, keys, raw, logs, until, gatekeeper):
    denied = raw(zmq.DEALER, endpoints[0], **keys.options("stranger"))
    await shout(denied, worker_report())
    await until(lambda: turned_away(logs))
    keys.authorize(worker="worker", frontend="frontend", stranger="worker")
    gatekeeper.reload()
    assert logs[-1]["added"] == ["stranger"]
    fresh = raw(zmq.DEALER, endpoints[0], **keys.options("stranger"))
    await answered(fresh, worker_report(), WorkerView)


async def test_a_key_that_is_removed_is_cut_off(router, endpoints, keys, raw, logs, until, gatekeeper):
    worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    await answered(worker, worker_report(), WorkerView)
    (route,) = [peer.route for peer in router._mailbox._core.state.workers]
    keys.authorize(frontend="frontend")
    gatekeeper.reload()
    # Nothing more is sent to it, and the core is told so.
    assert router._workers.send([route, b"secret"]) is SendResult.UNREACHABLE
    await worker.say(worker_report(seq=1000))
    await until(lambda: turned_away(logs))
    assert turned_away(logs)[0]["why"] == "its key was taken out of authorized_keys_file"
    await until(lambda: not router._mailbox._core.state.workers)


def test_a_key_is_removed_even_if_the_brokers_own_is_unusable(keys, gatekeeper, logs):
    keys.authorize(frontend="frontend")
    keys.secret_file("broker").chmod(0o644)
    gatekeeper.reload()
    assert not gatekeeper.is_authorized("worker", keys.pairs["worker"].public)
    assert logs[-1]["event"] == "the broker could not start again with its own key"
    assert "chmod 0600" in logs[-1]["why"]


async def test_a_broken_list_changes_nothing(router, endpoints, keys, raw, logs, gatekeeper):
    worker = raw(zmq.DEALER, endpoints[0], **keys.options("worker"))
    await answered(worker, worker_report(), WorkerView)
    keys.authorized_keys.write_text("wroker worker KEY\n")
    gatekeeper.reload()
    assert logs[-1]["event"] == "keys not read again, the old ones stay"
    assert "authorized_keys: line 1: 'wroker' is no role" in logs[-1]["why"]
    await answered(worker, worker_report(seq=1000), WorkerView)


def test_the_routes_that_are_remembered_are_bounded(keys, gatekeeper):
    guard = RouteGuard(gatekeeper, "worker")
    public = keys.pairs["worker"].public
    for number in range(MAX_ROUTES + 1):
        assert guard.admits(b"%d" % number, public)
    assert not guard.may_be_told(b"0")
    assert guard.may_be_told(b"1")


# --- From the side of a worker or frontend ---------------------------------------------------------


@pytest.fixture
def links(endpoints, router):
    """Makes links to the workers' endpoint."""
    made = []

    def make(keyring):
        made.append(BrokerLink(endpoints[0], MIB, lambda _: None, keyring))
        return made[-1]

    yield make
    for link in made:
        link.close()


def complaints(logs):
    return [line for line in logs if line["event"] == "no connection to broker"]


def keyring(keys, name, endpoints):
    return Keyring(keys.secret_file(name), keys.known_brokers, endpoints)


async def test_a_denied_peer_says_so_once(links, endpoints, keys, logs, until):
    link = links(keyring(keys, "stranger", endpoints))
    await until(lambda: complaints(logs))
    link.reconnect()
    await until(lambda: link._denials._rarely.total >= 2)
    (line,) = complaints(logs)
    assert line["why"] == "denied: its authorized_keys_file does not list this key for this role"
    assert (line["broker"], line["own_key"]) == (endpoints[0], keys.pairs["stranger"].public)


async def test_a_peer_without_keys_says_that_it_needs_them(links, logs, until):
    links(None)
    await until(lambda: complaints(logs))
    assert "curve_key_file" in complaints(logs)[0]["why"]


async def test_a_peer_that_knows_another_key_says_so(links, endpoints, keys, logs, until):
    keys.know("other_broker")
    links(keyring(keys, "worker", endpoints))
    await until(lambda: complaints(logs))
    assert "known_brokers_file" in complaints(logs)[0]["why"]


async def test_a_peer_that_encrypts_to_a_broker_that_does_not(
    folder, keys, logs, until, endpoint, loop_socket
):
    loop_socket(zmq.ROUTER, lambda _: None).bind(endpoint)
    link = BrokerLink(endpoint, MIB, lambda _: None, keyring(keys, "worker", [endpoint]))
    await until(lambda: complaints(logs))
    link.close()
    assert "does not encrypt" in complaints(logs)[0]["why"] or "not finished" in complaints(logs)[0]["why"]


async def test_new_keys_are_used_at_once(links, endpoints, keys, logs, until):
    keys.know("other_broker")
    ring = keyring(keys, "worker", endpoints)
    link = links(ring)
    await until(lambda: complaints(logs))
    keys.know("broker")
    ring.reload()
    await until(lambda: link.send(worker_report()))


async def test_a_link_that_is_closed_stays_so(links, endpoints, keys):
    keys.know("other_broker")
    ring = keyring(keys, "worker", endpoints)
    link = links(ring)
    link.close()
    before = link._socket
    keys.know("broker")
    ring.reload()
    assert link._socket is before


async def test_keys_that_are_the_same_leave_the_connection_alone(links, endpoints, keys, logs, until):
    ring = keyring(keys, "worker", endpoints)
    link = links(ring)
    await until(lambda: link.send(worker_report()))
    before = link._socket
    ring.reload()
    keys.known_brokers.write_text("broker-2\n")
    ring.reload()
    assert "known_brokers: line 1: 1 words" in logs[-1]["why"]
    assert link._socket is before
