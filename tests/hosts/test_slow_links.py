"""Cables that lose frames, or carry little.

100 Mbit/s between the components are assumed. Where it is less, what matters is how long one image takes: it
is one frame, and a connection on which no whole frame arrives for 3 s counts as dead.
"""

import grpc
import pytest
from hosts.cluster import WORKERS, Cluster
from hosts.load import Load
from processes.stack import content_of

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")

LARGE = {"height": 1024, "width": 1024}
"""The fake engine's picture of this size has 1.6 MB, as a real one: 1.3 s at 10 Mbit/s, 6.4 s at 2 Mbit/s."""
DEADLINE_S = 20.0


@pytest.mark.parametrize("percent", [2, 10])
def test_images_go_on_over_cables_that_lose_frames(cluster: Cluster, percent: int) -> None:
    for worker in WORKERS:
        cluster.network.lose(worker, percent)
    with Load(cluster) as load:
        load.until_images(30)
    assert cluster.network.dropped() > 0
    assert not load.failed


def only_worker(cluster: Cluster) -> str:
    """The others have ended, so that it gets every job."""
    only, *others = WORKERS
    for worker in others:
        cluster.end(worker)
        cluster.until_gone(worker)
    return only


def test_a_large_image_crosses_a_cable_of_10_mbit_s(cluster: Cluster) -> None:
    cluster.network.limit(only_worker(cluster), mbit_s=10)
    content = content_of(cluster.client().draw("a large one", deadline_s=DEADLINE_S, **LARGE))
    assert content.prompt_digest == prompt_digest("a large one")


def test_at_2_mbit_s_only_small_images_arrive_and_the_worker_is_not_taken_for_lost(cluster: Cluster) -> None:
    worker = only_worker(cluster)
    cluster.network.limit(worker, mbit_s=2)
    refusal = cluster.client().begin("too large", steps=1, deadline_s=DEADLINE_S, **LARGE).refusal()
    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    cluster.until_state(worker, "ready")
    content = content_of(cluster.client().draw("a small one"))
    assert content.prompt_digest == prompt_digest("a small one")
