"""The network does what the other tests take for granted: a fault that is none would let them all pass."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from hosts.network import Network
from processes.stack import until

LIMIT_S = 20.0
HERE, THERE = "worker-1", "broker-1"


@pytest.fixture(autouse=True)
def _healed(network: Network) -> Iterator[None]:
    yield
    network.heal()


@pytest.fixture
def sockets(network: Network) -> Iterator[tuple[socket.socket, socket.socket]]:
    """For datagrams, one on each of two hosts, which have found each other's address."""
    with udp_socket(network, HERE) as here, udp_socket(network, THERE) as there:
        for source, target in ((here, there), (there, here)):
            source.sendto(b"first", target.getsockname())
            assert target.recv(16) == b"first"
        yield here, there


def udp_socket(network: Network, host: str) -> socket.socket:
    with network.inside(host):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((network.address(host), 0))
    made.settimeout(LIMIT_S)
    return made


def arrived(receiver: socket.socket) -> list[bytes]:
    """The datagrams that wait there now."""
    receiver.settimeout(0)
    try:
        with contextlib.suppress(BlockingIOError):
            return [receiver.recv(16), *arrived(receiver)]
        return []
    finally:
        receiver.settimeout(LIMIT_S)


def test_a_cut_is_one_way(network: Network, sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = sockets
    network.cut(HERE, THERE)
    here.sendto(b"x", there.getsockname())
    until("the datagram is dropped", lambda: network.dropped() >= 1, LIMIT_S)
    assert arrived(there) == []
    there.sendto(b"y", here.getsockname())
    assert here.recv(16) == b"y"
    network.heal()
    here.sendto(b"z", there.getsockname())
    assert there.recv(16) == b"z"


def test_one_cut_is_mended_and_tells_what_it_dropped(
    network: Network, sockets: tuple[socket.socket, socket.socket]
) -> None:
    here, there = sockets
    first, second = network.cut(HERE, THERE), network.cut(THERE, HERE)
    here.sendto(b"x", there.getsockname())
    until("the datagram is dropped", lambda: network.dropped() >= 1, LIMIT_S)
    network.mend(second)
    assert network.mend(first) >= 1
    here.sendto(b"y", there.getsockname())
    assert there.recv(16) == b"y"


def test_an_isolated_host_neither_hears_nor_is_heard(
    network: Network, sockets: tuple[socket.socket, socket.socket]
) -> None:
    here, there = sockets
    cuts = network.isolate(HERE)
    here.sendto(b"x", there.getsockname())
    there.sendto(b"x", here.getsockname())
    until("both are dropped", lambda: network.dropped() >= 2, LIMIT_S)
    assert all(network.mend(cut) for cut in cuts)
    assert arrived(here) == arrived(there) == []


def test_loss_takes_its_share(network: Network, sockets: tuple[socket.socket, socket.socket]) -> None:
    here, there = sockets
    network.lose(HERE, percent=30)
    sent, received = 400, []
    for _ in range(sent):
        here.sendto(b"x", there.getsockname())
        received += arrived(there)

    def lost() -> int:
        received.extend(arrived(there))
        dropped = network.dropped()
        # Where this takes seconds, a frame that asks for an address is dropped as well.
        return dropped if dropped + len(received) >= sent else 0

    assert 0.2 * sent < until("each has arrived or is dropped", lost, LIMIT_S) < 0.4 * sent


def test_an_unplugged_host_is_silent_until_it_is_plugged_in(
    network: Network, sockets: tuple[socket.socket, socket.socket]
) -> None:
    here, there = sockets
    network.unplug(HERE)
    there.sendto(b"lost", here.getsockname())
    network.plug_in(HERE)

    def answered() -> bool:
        there.sendto(b"back", here.getsockname())
        return b"back" in arrived(here)

    until("it hears again", answered, LIMIT_S)


def test_a_limited_cable_is_slow(network: Network) -> None:
    size_bytes = 250_000  # a second at 2 Mbit/s
    with network.inside(THERE):
        listener = socket.create_server((network.address(THERE), 0))
    network.limit(HERE, mbit_s=2)
    with listener:
        with network.inside(HERE):
            sender = socket.create_connection(listener.getsockname(), LIMIT_S)
        began_at = time.monotonic()
        with sender, listener.accept()[0] as receiver:
            sender.settimeout(LIMIT_S)
            sender.sendall(bytes(size_bytes))
            received = 0
            while received < size_bytes:
                received += len(receiver.recv(65536))
    assert time.monotonic() - began_at > 0.8, "the burst is for nothing"


def test_the_hosts_have_names_of_their_own(network: Network) -> None:
    for host in (HERE, THERE):
        said = subprocess.check_output([*network.command_on(host), "hostname"], text=True)
        assert said.strip() == host
