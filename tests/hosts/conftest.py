"""One network for all tests of the session; the tests themselves, and so their calls, are on a host of it."""

from collections.abc import Iterator

import pytest
from hosts.cluster import Cluster, among_hosts
from hosts.network import Network


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--storm-s", type=float, default=60.0, help="how long the storm lasts, s")
    parser.addoption("--storm-seed", type=int, default=1, help="which faults it brings")


@pytest.fixture(scope="session")
def network() -> Iterator[Network]:
    with among_hosts() as built:
        yield built


@pytest.fixture(scope="module")
def cluster(
    network: Network, tmp_path_factory: pytest.TempPathFactory, time_scale: float
) -> Iterator[Cluster]:
    with Cluster(network, tmp_path_factory.mktemp("cluster"), time_scale) as running:
        yield running.start()


@pytest.fixture
def healthy(cluster: Cluster) -> Iterator[None]:
    """The network is whole and everything runs, also after a test that failed half-way; and it draws."""
    cluster.start()
    yield
    cluster.network.heal()
    cluster.start()  # and no job is left behind
    cluster.draws()
