"""Handshakes that fail, as a socket's monitor tells of them."""

import socket

import pytest
import zmq

from proto.handshakes import HandshakeFailure, HandshakeFault, plain_address
from proto.sockets import LoopSocket, close_context


@pytest.fixture
async def watched(folder):
    """A listening socket, with the failures that it was told of."""
    failures = []
    watched = LoopSocket(zmq.ROUTER, 1024, lambda _: None, on_handshake_failure=failures.append)
    watched.failures = failures
    yield watched
    watched.close()
    close_context()


def knock(endpoint):
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.connect(endpoint.removeprefix("ipc://"))


async def test_a_flood_while_the_loop_stands_still_stops_nobody(watched, endpoint):
    """libzmq's own thread must find room for what it tells, or it serves no connection any more."""
    watched.bind(endpoint)
    for _ in range(1500):
        knock(endpoint)
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(endpoint.removeprefix("ipc://"))
        peer.settimeout(20)
        assert peer.recv(1) == b"\xff"  # the beginning of its greeting


async def test_each_failure_is_told_once(watched, endpoint, until):
    watched.bind(endpoint)
    for count in (1, 2, 3):
        knock(endpoint)
        await until(lambda count=count: len(watched.failures) == count)
    assert {failure.fault for failure in watched.failures} == {HandshakeFault.ENDED}


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
"""ZMTP 3.0, from a peer that encrypts (RFC 23)."""


async def test_the_address_of_one_that_encrypts_where_nobody_does(watched, tcp_endpoint, until):
    watched.bind(tcp_endpoint)
    port = int(tcp_endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as peer:
        assert peer.recv(1) == b"\xff"
        await until(lambda: watched._handshakes._addresses)
        peer.sendall(GREETING)
        await until(lambda: watched.failures)
    assert watched.failures == [HandshakeFailure(fault=HandshakeFault.MECHANISM, address="127.0.0.1")]


def test_addresses_as_people_write_them():
    assert plain_address("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_address("fd00::1") == "fd00::1"
