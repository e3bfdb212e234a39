"""A broker's host vanishes, or only its cable: the other broker has the service in its hands."""

import pytest
from hosts.cluster import BROKERS, FRONTENDS, Cluster
from hosts.load import Load
from processes.stack import OpenCall, content_of

from gpu_worker.engines.fake import prompt_digest

TCP_RETRY_S = 1.0
"""Of Linux, for a first packet that was lost: it knows no time scale."""

pytestmark = pytest.mark.usefixtures("healthy")


def dispatched(cluster: Cluster, call: OpenCall, frontend: str = FRONTENDS[0]) -> str:
    """The execution that this call's broker has begun."""
    running = cluster.until_running(call, frontend)
    started = cluster.components["broker-1"].until_event("job dispatched", job_id=running["job_id"])
    return str(started["execution_id"])


def test_the_host_of_the_broker_vanishes_in_the_middle_of_a_job(cluster: Cluster) -> None:
    call = cluster.client().begin("a valley")
    with cluster.held():
        execution_id = dispatched(cluster, call)
        cluster.vanish("broker-1")
        cluster.components["broker-2"].until_event("execution adopted", execution_id=execution_id)
        cluster.until_running(call)
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("a valley")
    assert content.execution_id.hex() == execution_id, "drawn once"
    for frontend in FRONTENDS:
        assert content_of(cluster.client(frontend).draw("on")).prompt_digest == prompt_digest("on")
    cluster.come_back("broker-1")


def test_a_broker_that_was_cut_off_does_no_harm_when_it_returns(cluster: Cluster) -> None:
    before = cluster.totals()
    call = cluster.client().begin("a moor")
    with cluster.held():
        execution_id = dispatched(cluster, call)
        cluster.network.unplug("broker-1")
        cluster.components["broker-2"].until_event("execution adopted", execution_id=execution_id)
        cluster.network.plug_in("broker-1")
        cluster.until_broker_heard("broker-1")
        running = cluster.until_running(call)
        assert running["state"] == "busy"
    assert content_of(call.image()).execution_id.hex() == execution_id, "drawn once, and not cancelled"
    cluster.until_idle()
    after = cluster.totals()
    assert (after["completed"], after["failed"]) == (before["completed"] + 1, before["failed"])


def test_both_brokers_vanish_and_the_image_comes_when_they_are_back(cluster: Cluster) -> None:
    call = cluster.client().begin("a fjord")
    with cluster.held():
        execution_id = dispatched(cluster, call)
        for broker in BROKERS:
            cluster.vanish(broker)
        for broker in BROKERS:
            cluster.come_back(broker)
        cluster.until_running(call)
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("a fjord")
    # Elsewhere the window is shorter than TCP takes for its second try, and an idle worker may be back first.
    if cluster.timing.rebuild_s >= TCP_RETRY_S + cluster.timing.heartbeat_interval_s:
        assert content.execution_id.hex() == execution_id, "drawn once"


@pytest.mark.timeout(240)
def test_images_go_on_while_brokers_vanish_and_return(cluster: Cluster) -> None:
    with Load(cluster) as load:
        for broker in BROKERS:
            cluster.vanish(broker)
            for frontend in FRONTENDS:
                load.until_images(5, frontend)
            cluster.come_back(broker)
            cluster.until_broker_heard(broker)
            load.until_images(5)
    assert not load.failed, load.summary()
