"""What guards the frontend's ports: API keys and certificates, taken anew when their files change."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog

from frontend.api_keys import ApiKeys, clients_of
from frontend.key_file import read_clients
from frontend.settings import FrontendSettings
from frontend.tls import ServerTls
from proto.file_watch import keep_fresh
from proto.operator_files import FileUnusable

log = structlog.get_logger()

Load = Callable[[], bool]
"""Reads files, and tells whether that changed anything. Raises `FileUnusable`, and leaves all as it was."""


class Edge:
    def __init__(self, settings: FrontendSettings) -> None:
        """Raises `FileUnusable`."""
        self._listed = clients_of(settings.keys)
        self.keys = ApiKeys(self._listed)
        self.tls = None if settings.tls_files is None else ServerTls(settings.tls_files)
        self._sources: list[tuple[str, tuple[Path, ...], Load]] = []
        if self.tls is not None and settings.tls_files is not None:
            self._sources.append(("certificate", settings.tls_files.paths, self.tls.load))
        if (path := settings.api_keys_file) is not None:
            self._sources.append(("API keys", (path,), partial(self._load_keys, path)))
        for _, _, load in self._sources:
            load()

    def keep_fresh(self) -> None:
        """From now on, for as long as the event loop runs."""
        for what, paths, load in self._sources:
            keep_fresh(paths, partial(_load_again, what, load))

    def _load_keys(self, path: Path) -> bool:
        return self.keys.replace({**self._listed, **read_clients(path)})


def _load_again(what: str, load: Load) -> None:
    """What cannot be used changes nothing, and is logged."""
    try:
        if load():
            log.info("files read again", what=what)
    except FileUnusable as error:
        log.error("files not read again, what was there stays", what=what, why=str(error))
