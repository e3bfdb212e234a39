"""Which public key a broker must prove to have: a list like ssh's known_hosts.

Each line is `WHERE PUBLIC_KEY`. WHERE is HOST:PORT, HOST, a whole ipc endpoint, or `*` for any broker;
hosts are written as in the endpoints of the settings, and what is more exact counts first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proto.endpoints import tcp_host_and_port
from proto.key_file import checked_public_key, read_entries
from proto.operator_files import FileUnusable


@dataclass(frozen=True, slots=True)
class KnownBrokers:
    path: Path
    keys: Mapping[str, str]
    """Public keys by WHERE."""

    def key_of(self, endpoint: str) -> str:
        """Raises `FileUnusable` if the list does not tell."""
        for where in _names(endpoint):
            if where in self.keys:
                return self.keys[where]
        raise FileUnusable(f"{self.path}: no key for {endpoint}: add a line {_names(endpoint)[0]} PUBLIC_KEY")


def read_known_brokers(path: Path) -> KnownBrokers:
    """Raises `FileUnusable`."""
    keys: dict[str, str] = {}
    for line, words in read_entries(path):
        if len(words) != 2:
            raise FileUnusable(f"{line}: {len(words)} words; expected: HOST, HOST:PORT or *, then PUBLIC_KEY")
        where, key = words
        if where.startswith("tcp://"):
            raise FileUnusable(f"{line}: {where}: write HOST:PORT without tcp://")
        if where in keys:
            raise FileUnusable(f"{line}: {where} has a key already: one only can be proved")
        keys[where] = checked_public_key(key, line)
    return KnownBrokers(path=path, keys=keys)


def _names(endpoint: str) -> tuple[str, ...]:
    tcp = tcp_host_and_port(endpoint)
    return (endpoint, "*") if tcp is None else (f"{tcp[0]}:{tcp[1]}", tcp[0], "*")
