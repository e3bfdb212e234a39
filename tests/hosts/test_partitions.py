"""Two hosts do not hear each other, or only one of them hears the other, while everybody else hears both."""

import pytest
from hosts.cluster import FRONTENDS, WORKERS, Cluster
from processes.stack import content_of

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")

WAYS = {"from": (True, False), "to": (False, True), "both": (True, True)}


def cut(cluster: Cluster, peer: str, broker: str, way: str) -> None:
    from_peer, to_peer = WAYS[way]
    if from_peer:
        cluster.network.cut(peer, broker)
    if to_peer:
        cluster.network.cut(broker, peer)


@pytest.mark.parametrize("way", WAYS)
def test_a_call_whose_frontend_loses_its_broker_gets_its_image_through_the_other(
    cluster: Cluster, way: str
) -> None:
    prompt = f"a valley, {way}"
    call = cluster.client("frontend-1").begin(prompt, steps=20)
    with cluster.held():
        running = cluster.until_running(call)
        started = cluster.components["broker-1"].until_event("job dispatched", job_id=running["job_id"])
        cut(cluster, "frontend-1", "broker-1", way)
        cluster.components["broker-2"].until_event("execution adopted", execution_id=started["execution_id"])
        assert cluster.until_running(call)["worker_id"] == running["worker_id"]
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest(prompt)
    assert content.execution_id.hex() == started["execution_id"], "drawn once"
    assert cluster.network.dropped() > 0
    cluster.draws()


@pytest.mark.parametrize("way", WAYS)
def test_a_job_whose_worker_is_cut_off_from_its_broker_is_not_lost(cluster: Cluster, way: str) -> None:
    prompt = f"a bridge, {way}"
    before = cluster.totals()
    call = cluster.client("frontend-1").begin(prompt, steps=20)
    with cluster.held():
        busy = cluster.until_running(call)["worker_id"]
        cut(cluster, busy, "broker-1", way)
        cluster.let_go(*(worker for worker in WORKERS if worker != busy))
        cluster.draws()
        content = content_of(call.image())
    assert content.prompt_digest == prompt_digest(prompt)
    assert cluster.network.dropped() > 0
    cluster.network.heal()
    cluster.until_idle()
    after = cluster.totals()
    assert after["completed"] == before["completed"] + 1 + len(FRONTENDS)
    assert after["failed"] == before["failed"]
