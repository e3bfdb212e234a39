"""Is a port free? Asked before gRPC tries, which would not say why it is not."""

import errno
import os
import socket
from typing import Final

_REASONS: Final = {
    errno.EADDRINUSE: "the port is taken by another process",
    errno.EACCES: "this user may not listen on that port",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}
_SETTINGS: Final = {"gRPC": "grpc_port", "HTTP": "http_port"}


class CannotListen(Exception):
    """The text names what was to listen, where, and why it cannot."""

    def __init__(self, purpose: str, host: str, port: int, error: OSError) -> None:
        reason = _REASONS.get(error.errno or 0) or error.strerror or os.strerror(error.errno or 0)
        if error.errno == errno.EADDRINUSE and purpose in _SETTINGS:
            reason += f"; {_SETTINGS[purpose]} sets another one"
        super().__init__(f"cannot listen for {purpose} on {host} port {port}: {reason}")


def require_free_port(purpose: str, host: str, port: int) -> None:
    """Raise `CannotListen` if `host` is no address of this machine or `port` is taken there."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _name, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as error:
        raise CannotListen(purpose, host, port, error) from error
