"""The keys of a worker or frontend: its own, and those that its brokers must prove to have."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import structlog

from proto.curve import CurveClient
from proto.key_file import read_key_pair
from proto.known_brokers import read_known_brokers
from proto.operator_files import FileUnusable

log = structlog.get_logger()


class Keyring:
    """What `BrokerLink`s ask for; empty where nothing is encrypted."""

    def __init__(
        self, key_file: Path | None, known_brokers_file: Path | None, endpoints: Sequence[str]
    ) -> None:
        """Both files or none. Raises `FileUnusable`."""
        self._key_file = key_file
        self._known_brokers_file = known_brokers_file
        self._endpoints = endpoints
        self._clients = self._read()
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def empty(cls) -> Self:
        return cls(None, None, ())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for path in (self._key_file, self._known_brokers_file) if path is not None)

    def client_for(self, endpoint: str) -> CurveClient | None:
        return self._clients.get(endpoint)

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back after each reload that changed a key."""
        self._listeners.append(callback)

    def no_longer(self, callback: Callable[[], None]) -> None:
        """Undo `on_change`, if that was done."""
        self._listeners = [each for each in self._listeners if each != callback]

    def reload(self) -> None:
        """Read the files again. What cannot be used changes nothing."""
        try:
            clients = self._read()
        except FileUnusable as error:
            log.error("keys not read again, the old ones stay", why=str(error))
            return
        if clients != self._clients:
            self._clients = clients
            log.info("keys read again", brokers={each: client.broker_key for each, client in clients.items()})
            for callback in self._listeners:
                callback()

    def _read(self) -> dict[str, CurveClient]:
        if self._key_file is None or self._known_brokers_file is None:
            return {}
        own = read_key_pair(self._key_file)
        brokers = read_known_brokers(self._known_brokers_file)
        return {
            endpoint: CurveClient(keys=own, broker_key=brokers.key_of(endpoint))
            for endpoint in self._endpoints
        }
