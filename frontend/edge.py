"""What guards the frontend's ports: API keys and certificates, taken anew when their files change."""

import asyncio
from pathlib import Path
from typing import Final

from frontend.api_keys import ApiKeys, Clients, clients_of
from frontend.key_file import read_clients
from frontend.settings import FrontendSettings
from frontend.tls import ServerTls, TlsFiles
from frontend.watched_files import WatchedFiles

LOOK_INTERVAL_S: Final = 1.0


class Edge:
    def __init__(self, settings: FrontendSettings) -> None:
        """Raises `FileUnusable`."""
        self._listed: Clients = clients_of(settings.keys)
        self._files: list[WatchedFiles] = []
        self.keys = ApiKeys(self._listed)
        self.tls: ServerTls | None = None
        if settings.tls_files is not None:
            self.tls = self._watched_tls(settings.tls_files)
        if settings.api_keys_file is not None:
            self._watch_keys(settings.api_keys_file)

    def _watched_tls(self, files: TlsFiles) -> ServerTls:
        tls = ServerTls(files)
        self._files.append(WatchedFiles("certificate", files.paths, tls.load))
        return tls

    def _watch_keys(self, path: Path) -> None:
        def load() -> None:
            self.keys.replace({**self._listed, **read_clients(path)})

        self._files.append(WatchedFiles("API keys", (path,), load))

    def read_again(self) -> None:
        """All files, whether they have changed or not."""
        for each in self._files:
            each.read_again()

    async def watch(self) -> None:
        """Look after the files, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            for each in self._files:
                each.look()
