"""ZeroMQ endpoints as settings: which are accepted, and which leave this host."""

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, ValidationInfo
from pydantic_settings import NoDecode

IPC_PATH_MAX_BYTES: Final = 107
"""`sun_path` of a unix socket holds 108 bytes with its terminator."""
BROKERS_MAX: Final = 8
"""That one worker or frontend is connected to."""
UNENCRYPTED_NETWORK: Final = "insecure_allow_unencrypted_network"
"""The setting that lets an endpoint leave this host without keys."""

_TCP: Final = re.compile(r"tcp://(?P<host>\[[^\]\s]+\]|[^\[\]:\s]+):(?P<port>[0-9]{1,5})", re.ASCII)
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*", re.ASCII)
_EXPECTED: Final = "expected: tcp://HOST:PORT, tcp://[IPv6]:PORT or ipc:///PATH"
_ANY_ADDRESS: Final = frozenset({"*", "0.0.0.0", "[::]"})


def tcp_host_and_port(endpoint: str) -> tuple[str, int] | None:
    """The parts of a tcp endpoint, an IPv6 address in its brackets; None of any other."""
    match = _TCP.fullmatch(endpoint)
    return (match["host"], int(match["port"])) if match else None


def stays_on_this_host(endpoint: str) -> bool:
    """It is ipc, or a loopback address. Other names are not looked up: they can change."""
    tcp = tcp_host_and_port(endpoint)
    if tcp is None:
        return endpoint.startswith("ipc://")
    address = _address(tcp[0])
    return tcp[0] == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:-1])
        return ipaddress.IPv4Address(host)
    except ValueError:
        return None


def _endpoint(value: str) -> str:
    if not value.isprintable():  # what is no UTF-8 in the environment, too: ZeroMQ could not take it
        raise ValueError("has characters that cannot be printed")
    if value.startswith("ipc://"):
        return _ipc_endpoint(value)
    tcp = tcp_host_and_port(value)
    if tcp is None:
        raise ValueError(_EXPECTED)
    host, port = tcp
    if not 1 <= port <= 65535:
        raise ValueError("the port must be between 1 and 65535")
    looks_numeric = re.fullmatch(r"[0-9.]+", host) is not None
    if host != "*" and _address(host) is None and (looks_numeric or not _HOST_NAME.fullmatch(host)):
        raise ValueError(f"the host is neither an address nor a host's name: {_EXPECTED}")
    return value


def _ipc_endpoint(value: str) -> str:
    path = value.removeprefix("ipc://")
    if not path.startswith("/"):
        raise ValueError("an ipc endpoint needs an absolute path: ipc:///PATH")
    if len(path.encode()) > IPC_PATH_MAX_BYTES:
        raise ValueError(f"an ipc path may have at most {IPC_PATH_MAX_BYTES} bytes")
    return value


def _encrypted_or_on_this_host(value: str, info: ValidationInfo) -> str:
    """Fields are validated in their order: those of `NetworkSettings` come before any endpoint."""
    if stays_on_this_host(value) or info.data.get("curve_key_file") or info.data.get(UNENCRYPTED_NETWORK):
        return value
    raise ValueError(
        "leaves this host, and its traffic would not be encrypted: set curve_key_file, or stay on"
        " tcp://127.0.0.1:PORT, tcp://[::1]:PORT, tcp://localhost:PORT or ipc:///PATH,"
        f" or set {UNENCRYPTED_NETWORK}"
    )


def _of_one_host(value: str) -> str:
    tcp = tcp_host_and_port(value)
    if tcp is not None and tcp[0] in _ANY_ADDRESS:
        raise ValueError("name the broker's host: that is where it listens, not where it is found")
    return value


ListenEndpoint = Annotated[str, AfterValidator(_endpoint), AfterValidator(_encrypted_or_on_this_host)]
"""Where to bind. Beyond this host only encrypted, or by an explicit setting."""

BrokerEndpoint = Annotated[ListenEndpoint, AfterValidator(_of_one_host)]
"""Where to connect to; as `ListenEndpoint`."""


def _comma_separated(value: object) -> object:
    return [entry.strip() for entry in value.split(",")] if isinstance(value, str) else value


def _a_few_different(endpoints: tuple[str, ...]) -> tuple[str, ...]:
    if not 1 <= len(endpoints) <= BROKERS_MAX:
        raise ValueError(f"name 1 to {BROKERS_MAX} brokers, not {len(endpoints)}")
    twice = [endpoint for endpoint in endpoints if endpoints.count(endpoint) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is named twice")
    return endpoints


BrokerEndpoints = Annotated[
    tuple[BrokerEndpoint, ...],
    NoDecode,
    BeforeValidator(_comma_separated),
    AfterValidator(_a_few_different),
]
"""Where the brokers are, separated by commas; all of them are used, the first ones preferred."""
