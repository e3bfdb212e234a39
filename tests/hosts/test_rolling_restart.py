"""An upgrade: every process is stopped and started again, one after the other, and callers do not notice."""

import pytest
from hosts.cluster import BROKERS, FRONTENDS, WORKERS, Cluster
from hosts.load import Load

pytestmark = pytest.mark.usefixtures("healthy")


@pytest.mark.timeout(300)
def test_no_accepted_job_fails(cluster: Cluster) -> None:
    with Load(cluster) as load:
        for name in (*BROKERS, *WORKERS, *FRONTENDS):
            cluster.end(name)
            load.until_images(3)
            cluster.components[name].start()
            cluster.until_back(name)
            load.until_images(3)
    print(load.summary())
    assert not load.failed


@pytest.mark.timeout(300)
def test_every_wish_comes_true_while_frontends_vanish(cluster: Cluster) -> None:
    """The calls of a vanished frontend are lost with it; repeated through the other they get their image."""
    with Load(cluster, insist=True) as load:
        for frontend in FRONTENDS:
            cluster.vanish(frontend)
            load.until_images(5)
            cluster.come_back(frontend)
            cluster.until_back(frontend)
            load.until_images(5, frontend)
    assert load.unfulfilled() == []
