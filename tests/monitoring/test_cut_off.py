"""Hosts are cut off, and somebody is told; with the rules and the times that are shipped."""

from collections.abc import Iterator

import pytest
from hosts.cluster import BROKERS, FOR_FRONTENDS, FRONTENDS, HTTP_PORT, WORKERS, Cluster, among_hosts
from monitoring.watchers import Prometheus, Receiver, alertmanager, example, prometheus
from processes.stack import until

ALERT_LIMIT_S = 120.0
"""The longest `for` here is a minute; a lost worker takes 8 s before its begins."""

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    with among_hosts() as network, Cluster(network, tmp_path_factory.mktemp("cluster")) as running:
        yield running.start()


@pytest.fixture(scope="module")
def receiver(cluster) -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def watching(cluster, receiver, tmp_path_factory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    targets = [target(cluster, frontend) for frontend in FRONTENDS]
    with (
        alertmanager(folder, receiver) as port,
        prometheus(folder, targets, example(), alertmanager_port=port) as running,
    ):
        running.until_scraped(len(targets))
        yield running


@pytest.fixture(autouse=True)
def healthy(cluster, receiver, watching) -> Iterator[None]:
    """Nothing is wrong when a test begins, and nobody is told so; afterwards all is as it was."""
    until("no alert", lambda: watching.ask("count(ALERTS) or vector(0)") == [0])
    receiver.forget()
    yield
    cluster.network.heal()
    cluster.start()


def target(cluster, frontend):
    return f"{cluster.network.address(frontend)}:{HTTP_PORT}"


def test_a_lost_worker(cluster, receiver):
    lost = WORKERS[-1]
    cluster.network.unplug(lost)
    alert = receiver.until("firing", ALERT_LIMIT_S, alertname="FluxWorkerLost", worker=lost)
    assert alert["labels"]["job"] == "flux"
    assert alert["annotations"]["summary"] == f"Worker {lost} is lost"
    assert alert["annotations"]["runbook"] == "docs/operations.md#alerts-on-workers"
    cluster.network.plug_in(lost)
    receiver.until("resolved", ALERT_LIMIT_S, alertname="FluxWorkerLost", worker=lost)
    assert receiver.names() == {"FluxWorkerLost"}


def test_a_frontend_that_is_cut_off(cluster, receiver):
    gone = {"alertname": "FluxFrontendDown", "instance": target(cluster, FRONTENDS[-1])}
    cluster.network.unplug(FRONTENDS[-1])
    receiver.until("firing", ALERT_LIMIT_S, **gone)
    cluster.network.plug_in(FRONTENDS[-1])
    receiver.until("resolved", ALERT_LIMIT_S, **gone)
    assert receiver.names() == {"FluxFrontendDown"}


def test_one_broker_that_is_cut_off_and_then_the_other(cluster, receiver):
    first, second = BROKERS
    endpoint = f"tcp://{cluster.network.address(first)}:{FOR_FRONTENDS}"
    cluster.network.unplug(first)
    away = receiver.until("firing", ALERT_LIMIT_S, alertname="FluxBrokerAway", endpoint=endpoint)
    assert f"To {len(FRONTENDS)} frontends" in away["annotations"]["description"]
    assert receiver.names() == {"FluxBrokerAway"}
    cluster.network.unplug(second)
    none = receiver.until("firing", ALERT_LIMIT_S, alertname="FluxNoBroker")
    assert none["labels"]["severity"] == "critical"
    cluster.network.heal()
    receiver.until("resolved", ALERT_LIMIT_S, alertname="FluxNoBroker")
    receiver.until("resolved", ALERT_LIMIT_S, alertname="FluxBrokerAway", endpoint=endpoint)


def test_all_rules_are_evaluated_without_an_error(watching):
    def rules():
        return [rule for group in watching.get("rules")["groups"] for rule in group["rules"]]

    until("all rules have been evaluated", lambda: all(rule["health"] != "unknown" for rule in rules()))
    assert len(rules()) > 20
    assert [rule["lastError"] for rule in rules() if rule["health"] != "ok"] == []
