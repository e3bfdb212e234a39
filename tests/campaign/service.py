"""The service that a campaign strikes: its parts, its clients, and what its pages say."""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hosts.cluster import BROKERS, FRONTENDS, GRPC_PORT, HOSTS, HTTP_PORT, KEYS, WORKERS, Cluster
from hosts.network import Network
from processes.stack import Component, Stack

PREFIX: Final = "fluxcamp-"
CLIENTS: Final = ("client-1", "client-2", "client-3", "client-4")
ALL_HOSTS: Final = (*HOSTS, *CLIENTS)
PAGE_LIMIT_S: Final = 5.0
OF_WORKERS: Final[Mapping[str, object]] = {
    "step_limit_s": 6,
    "text_limit_s": 6,
    "decode_limit_s": 6,
    "quarantine_s": 5,
    "engine_backoff_s": 0.2,
    "engine_backoff_max_s": 2,
}
"""So that a frozen engine process is given up while it is frozen, and a burst of faults has an end."""


class ClientProcess(Component):
    """Not a part of the service; started again it goes on with what its ledger has left open."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        seed: int,
        frontends: Sequence[str],
        keys: Sequence[str],
        through: Sequence[str] = (),
    ) -> None:
        super().__init__(name, "campaign", {}, folder, keys, through)
        self.ledger = folder / f"{name}.jsonl"
        script = Path(__file__).parent / "client.py"
        self._arguments = (
            str(script),
            str(self.ledger),
            name,
            str(seed),
            ",".join(frontends),
            ",".join(keys),
        )

    def _command(self) -> Sequence[str]:
        return (sys.executable, *self._arguments)

    def _environment(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    parts: Mapping[str, Component]
    """Brokers, frontends and workers; the first word of a name says which."""
    clients: Mapping[str, ClientProcess]
    pages: Sequence[str]
    """The /metrics of all frontends."""
    network: Network | None = None
    """On which each is a host of its own."""

    @property
    def everybody(self) -> Mapping[str, Component]:
        return {**self.parts, **self.clients}

    def is_whole(self) -> bool:
        """Every frontend hears every broker, and every worker serves."""
        workers = sum(name.startswith("worker") for name in self.parts)
        brokers = sum(name.startswith("broker") for name in self.parts)
        return all(_shows(page, workers, brokers) for page in map(_look, self.pages))

    @classmethod
    def on_hosts(cls, cluster: Cluster, folder: Path, seed: int) -> "Service":
        """Two brokers, two frontends, three workers and four clients; nothing is started."""
        network = cluster.network
        for name in WORKERS:
            cluster.components[name].settings |= OF_WORKERS
        frontends = [f"{network.address(name)}:{GRPC_PORT}" for name in FRONTENDS]
        share = len(KEYS) // len(CLIENTS)
        clients = {
            name: ClientProcess(
                name,
                folder,
                seed=seed,
                frontends=frontends,
                keys=KEYS[number * share : (number + 1) * share],
                through=network.command_on(name),
            )
            for number, name in enumerate(CLIENTS)
        }
        return cls(
            parts={name: cluster.components[name] for name in (*BROKERS, *FRONTENDS, *WORKERS)},
            clients=clients,
            pages=[f"http://{network.address(name)}:{HTTP_PORT}/metrics" for name in FRONTENDS],
            network=network,
        )

    @classmethod
    def on_this_host(
        cls, stack: Stack, folder: Path, seed: int, keys: Mapping[str, Sequence[str]]
    ) -> "Service":
        """Of a stack that runs; `keys` of each client. No partitions."""
        clients = {
            name: ClientProcess(name, folder, seed=seed, frontends=[stack.address], keys=own)
            for name, own in keys.items()
        }
        return cls(
            parts={component.name: component for component in stack.components},
            clients=clients,
            pages=[f"{stack.http}/metrics"],
        )


def _look(page: str) -> dict[str, Any] | None:
    try:
        with urllib.request.urlopen(page, timeout=PAGE_LIMIT_S) as answer:
            document: dict[str, Any] = json.load(answer)
            return document
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def _shows(page: dict[str, Any] | None, workers: int, brokers: int) -> bool:
    if page is None:
        return False
    serving = [row for row in page["workers"] if row["state"] in {"ready", "busy"}]
    live = [row for row in page["brokers"] if row["state"] == "live"]
    return (len(serving), len(live)) == (workers, brokers)
