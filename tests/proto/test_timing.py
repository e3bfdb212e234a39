"""The time limits, and the relations that make them work together."""

import dataclasses

import pytest

from proto.timing import Timing


def test_the_defaults_are_those_of_the_protocol():
    assert Timing() == Timing(
        heartbeat_interval_s=1.0,
        probe_after_s=1.5,
        probe_interval_s=0.25,
        unreachable_grace_s=2.0,
        peer_lost_s=8.0,
        backlog_excuse_s=30.0,
        broker_silent_s=3.0,
        retry_wait_s=3.0,
        repeat_after_s=1.5,
    )


def test_all_durations_scale_together():
    scaled = dataclasses.asdict(Timing().scaled(0.2))
    for name, value in dataclasses.asdict(Timing()).items():
        assert scaled[name] == pytest.approx(value * 0.2)


@pytest.mark.parametrize(
    ("changes", "relation"),
    [
        ({"probe_after_s": 1.0}, "probe_after_s > heartbeat_interval_s"),
        ({"repeat_after_s": 0.9}, "repeat_after_s > heartbeat_interval_s"),
        ({"broker_silent_s": 2.0}, "broker_silent_s > 2 * heartbeat_interval_s"),
        ({"peer_lost_s": 3.5}, "peer_lost_s > probe_after_s + unreachable_grace_s"),
    ],
)
def test_a_broken_relation_is_named(changes, relation):
    with pytest.raises(ValueError, match="timing needs") as caught:
        Timing(**changes)
    assert relation in str(caught.value)


def test_all_broken_relations_are_named_at_once():
    with pytest.raises(ValueError, match=r"probe_after_s > .* and .*broker_silent_s >"):
        Timing(heartbeat_interval_s=3.0)
