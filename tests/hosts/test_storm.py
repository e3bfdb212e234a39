"""Faults of all kinds in a row, from a seed; for hours if wanted: `--storm-s 7200 --storm-seed 5`."""

import time

import pytest
from hosts.cluster import FRONTENDS, Cluster
from hosts.load import Load
from hosts.storm import Storm
from processes.stack import content_of

from gpu_worker.engines.fake import prompt_digest

pytestmark = pytest.mark.usefixtures("healthy")


@pytest.mark.timeout(0)
def test_nothing_is_lost_in_a_storm(cluster: Cluster, pytestconfig: pytest.Config) -> None:
    """Every call ends in its own image or in a word about why not; repeated, each gets its image."""
    storm = Storm(cluster, pytestconfig.getoption("storm_seed"))
    ends_at = time.monotonic() + pytestconfig.getoption("storm_s")
    with Load(cluster, insist=True) as load:
        for faults in storm.rounds():
            print(f"{load.images} images, then {' and '.join(fault.name for fault in faults)}")
            for fault in faults:
                fault.strike()
            load.until_answers(storm.lasts_for_answers())
            for fault in faults:
                fault.mend()
            if time.monotonic() > ends_at:
                break
    print(load.summary())
    assert load.unfulfilled() == []
    assert load.unexplained() == []
    cluster.until_idle()
    for frontend in FRONTENDS:
        assert content_of(cluster.client(frontend).draw("after")).prompt_digest == prompt_digest("after")
