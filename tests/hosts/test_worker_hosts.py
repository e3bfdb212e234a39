"""A worker's host vanishes, or only its cable; its row tells so, and its job is drawn elsewhere."""

import time

import pytest
from hosts.cluster import WORKERS, Cluster
from hosts.load import Load
from processes.stack import SLACK_S, content_of, until

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")


def test_the_job_of_a_vanished_host_is_drawn_on_another(cluster: Cluster) -> None:
    with cluster.held():
        call = cluster.client().begin("a lighthouse", seed=3)
        busy = cluster.until_running(call)["worker_id"]
        cluster.vanish(busy)
        cluster.until_lost(busy)
    content = content_of(call.image())
    assert (content.prompt_digest, content.seed) == (prompt_digest("a lighthouse"), 3)
    row = cluster.row(busy)
    assert row is not None
    assert row["report_age_s"] >= cluster.timing.unreachable_grace_s
    cluster.come_back(busy)
    assert cluster.until_state(busy, "ready")["engine_restarts"] == 0


def test_what_a_cut_off_host_draws_for_nobody_is_not_delivered(cluster: Cluster) -> None:
    before = cluster.totals()
    with cluster.held():
        call = cluster.client().begin("a harbour", seed=4)
        busy = cluster.until_running(call)["worker_id"]
        cluster.network.unplug(busy)
        cluster.until_lost(busy)
    content = content_of(call.image())
    assert (content.prompt_digest, content.seed) == (prompt_digest("a harbour"), 4)
    cluster.network.plug_in(busy)
    cluster.until_state(busy, "ready")
    after = cluster.totals()
    assert (after["completed"], after["failed"]) == (before["completed"] + 1, before["failed"])


def test_a_cable_that_is_out_for_some_seconds_costs_nothing(cluster: Cluster) -> None:
    broker = cluster.components["broker-1"]
    with cluster.held():
        call = cluster.client().begin("a moor")
        row = cluster.until_running(call)
        started = broker.until_event("job dispatched", job_id=row["job_id"])
        cluster.network.unplug(row["worker_id"])

        def silent() -> bool:
            now = cluster.row(row["worker_id"])
            return now is not None and now["report_age_s"] > 2 * cluster.timing.heartbeat_interval_s

        until("it is missed", silent)
        cluster.network.plug_in(row["worker_id"])
        until("it is heard again", lambda: not silent())
        assert cluster.until_running(call)["worker_id"] == row["worker_id"]
    assert content_of(call.image()).execution_id.hex() == started["execution_id"], "drawn once"


@pytest.mark.timeout(240)
def test_images_go_on_while_hosts_vanish_and_return(cluster: Cluster) -> None:
    with Load(cluster) as load:
        for worker in WORKERS:
            cluster.vanish(worker)
            load.until_images(5)
            cluster.until_lost(worker)
            cluster.come_back(worker)
            cluster.until_serving(worker)
    assert not load.failed


@pytest.mark.timeout(400)
def test_a_host_that_never_returns_is_forgotten(cluster: Cluster) -> None:
    gone = WORKERS[-1]
    cluster.vanish(gone)
    cluster.until_lost(gone)
    began_at = time.monotonic()
    cluster.until_gone(gone)
    assert time.monotonic() - began_at > cluster.timing.lost_worker_shown_s - SLACK_S
