"""One network for all tests of the session; the tests themselves, and so their clients, are on a host of it."""

import os
import shutil
from collections.abc import Iterator

import pytest
from hosts.network import Network

BROKERS = ("broker-1", "broker-2")
FRONTENDS = ("frontend-1", "frontend-2")
WORKERS = ("worker-1", "worker-2", "worker-3")
CLIENTS = "clients"


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    missing = [tool for tool in ("ip", "tc", "nft", "unshare") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.exit(f"network namespaces need root, and {', '.join(missing) or 'all tools are there'}", 2)
    with Network([*BROKERS, *FRONTENDS, *WORKERS, CLIENTS]) as built, built.inside(CLIENTS):
        yield built
