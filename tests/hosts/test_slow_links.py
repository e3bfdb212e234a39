"""Cables that lose frames, or carry little."""

import time

import pytest
from hosts.cluster import FRONTENDS, WORKERS, Cluster
from hosts.load import Load
from processes.stack import SLACK_S, content_of

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")

LARGE = {"height": 1024, "width": 1024}
"""The fake engine's picture of this size has 1.6 MB."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("percent", [2, 10])
def test_images_go_on_over_cables_that_lose_frames(cluster: Cluster, percent: int) -> None:
    for worker in WORKERS:
        cluster.network.lose(worker, percent)
    with Load(cluster) as load:
        load.until_images(30)
    assert cluster.network.dropped() > 0
    print(f"load: at {percent} % {load.summary()}")
    assert not load.failed


@pytest.mark.parametrize("mbit_s", [100, 10, 2])
def test_a_large_image_over_a_slow_cable(cluster: Cluster, mbit_s: int) -> None:
    for worker in WORKERS:
        cluster.network.limit(worker, mbit_s)
    began_at = time.monotonic()
    outcome = cluster.client().begin("a large one", steps=1, deadline_s=60, **LARGE).outcome(70)
    print(f"load: {mbit_s} Mbit/s: {time.monotonic() - began_at:.1f} s, {str(outcome)[:200]}")
    for w in WORKERS:
        print("load:", cluster.row(w))
