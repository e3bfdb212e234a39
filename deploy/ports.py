"""Addresses: finding free ports, and how a client on this machine reaches a listening one."""

import ipaddress
import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on at the moment."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def reachable(host: str, port: int) -> str:
    """HOST:PORT for a client on this machine, where the server listens on `host`, maybe on all addresses."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host}:{port}"
    if address.is_unspecified or (address.is_loopback and address.version == 4):
        return f"localhost:{port}"
    return f"[{host}]:{port}" if address.version == 6 else f"{host}:{port}"
