"""What operators see while the service is broken: each frontend tells what it knows, and how old that is."""

from typing import Any

import grpc
import pytest
from hosts.cluster import BROKERS, CLIENTS, FRONTENDS, LOOK_S, WORKERS, Cluster
from processes.stack import SLACK_S, content_of, until

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")


def page_of(cluster: Cluster, frontend: str) -> dict[str, Any]:
    page = cluster.page(frontend)
    assert page is not None
    return page


def until_standing(cluster: Cluster, broker: str, frontend: str, state: str) -> None:
    what = f"{broker} is {state} for {frontend}"
    until(what, lambda: cluster.standing(broker, frontend) == state, poll_s=LOOK_S)


def test_images_are_drawn_and_both_pages_show_every_host(cluster: Cluster) -> None:
    for frontend in FRONTENDS:
        prompt = f"through {frontend}"
        assert content_of(cluster.client(frontend).draw(prompt)).prompt_digest == prompt_digest(prompt)
        page = page_of(cluster, frontend)
        assert {row["worker_id"]: row["host"] for row in page["workers"]} == {name: name for name in WORKERS}
        assert [row["broker_id"] for row in page["brokers"]] == list(BROKERS)
        assert [row["gets_calls"] for row in page["brokers"]] == [True, False]
        assert page["worker_alive"] is True
        assert page["grpc_alive"] is True
        for row in page["workers"]:
            assert row["report_age_s"] < cluster.timing.heartbeat_interval_s + SLACK_S
            assert row["reading_age_s"] < SLACK_S


def test_a_frontend_that_misses_a_broker_says_so_and_the_other_does_not(cluster: Cluster) -> None:
    blind, seeing = FRONTENDS
    cluster.network.cut("broker-1", blind)
    until_standing(cluster, "broker-1", blind, "silent")
    missed, used = page_of(cluster, blind)["brokers"]
    assert missed["age_s"] >= cluster.timing.broker_silent_s
    assert used["gets_calls"] is True
    assert used["age_s"] < SLACK_S
    assert all(cluster.row(worker, blind) for worker in WORKERS), "told by the other broker"
    assert cluster.standing("broker-1", seeing) == "live"


def test_a_frontend_without_any_broker_shows_how_old_its_picture_is(cluster: Cluster) -> None:
    alone, other = FRONTENDS
    for broker in BROKERS:
        cluster.network.cut(alone, broker)
    for broker in BROKERS:
        until_standing(cluster, broker, alone, "silent")
    page = page_of(cluster, alone)
    assert (page["broker_alive"], page["worker_alive"], page["grpc_alive"]) == (False, False, True)
    assert page["age_s"] >= cluster.timing.broker_silent_s
    assert sorted(row["worker_id"] for row in page["workers"]) == list(WORKERS), "the last known picture"
    assert all(row["report_age_s"] >= page["age_s"] for row in page["workers"])
    refusal = cluster.client(alone).begin().refusal(limit_s=SLACK_S)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNREACHABLE")
    assert content_of(cluster.client(other).draw("on")).prompt_digest == prompt_digest("on")


def test_a_worker_that_one_broker_hears_is_not_lost(cluster: Cluster) -> None:
    worker = WORKERS[0]
    broker = cluster.components["broker-1"]
    cluster.network.cut(worker, "broker-1")
    broker.until_event("worker lost", worker_id=worker)
    for frontend in FRONTENDS:
        row = cluster.row(worker, frontend)
        assert row is not None
        assert row["state"] == "ready"
        assert row["report_age_s"] < cluster.timing.peer_lost_s


def test_a_worker_with_a_key_that_is_not_listed_is_no_worker(cluster: Cluster) -> None:
    stranger = cluster.stranger(CLIENTS)
    stranger.start()
    for broker in BROKERS:
        cluster.components[broker].until_event("peer turned away", role="worker")
    stranger.until_event("no connection to broker")
    for frontend in FRONTENDS:
        assert cluster.row(stranger.name, frontend) is None
    cluster.end(stranger.name)
