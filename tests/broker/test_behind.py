"""A broker that is behind with reading takes nobody for silent who has spoken meanwhile."""

import pytest
import zmq
from samples.wire import frontend_report, identifier, submit

from broker.events import HeardUntil
from broker.router import speaker
from proto.backlog import Backlog
from proto.codec import decode, encode
from proto.messages import FrontendView, JobState, Refuse, WorkerView


@pytest.fixture
def behind(broker):
    """A worker runs a job; from then on the broker reads nothing, as there is too much to read."""
    broker.frontend()
    broker.worker()
    broker.run_job()
    broker.tell(HeardUntil(instant=broker.now))
    return broker


def in_rounds(broker, duration_s):
    """As `after`, with a word of the shell in between: a broker that is behind does not stand still."""
    actions = broker.after(duration_s)
    broker.actions = actions
    return actions


def test_who_was_heard_until_then_is_not_silent(behind):
    in_rounds(behind, 30.0)
    assert behind.registered() == {"worker"}
    assert behind.core.state.ready_workers() == 1
    assert not behind.to_worker(WorkerView), "no probe"
    assert not behind.to_frontend(FrontendView)
    assert behind.job().state.worker_id == "worker"


def test_who_has_not_spoken_before_that_is_silent(behind):
    in_rounds(behind, 8.0)
    behind.tell(HeardUntil(instant=behind.now))
    in_rounds(behind, 0.3)
    assert behind.registered() == set()
    assert behind.statuses() == {}, "the frontend is as silent"


def test_a_flood_without_end_keeps_nobody_alive_who_is_dead(behind):
    """Who is read in turn with all others would have been heard long since."""
    in_rounds(behind, 37.9)
    assert behind.registered() == {"worker"}
    in_rounds(behind, 0.5)
    assert behind.registered() == set()


def test_a_connection_that_is_gone_counts_from_what_was_heard(behind):
    behind.unreachable()
    in_rounds(behind, 5.0)
    assert behind.registered() == {"worker"}
    behind.tell(HeardUntil(instant=behind.now))
    in_rounds(behind, 0.3)
    assert behind.registered() == set()


def test_once_it_has_caught_up_time_counts_again(behind):
    in_rounds(behind, 20.0)
    behind.worker()
    behind.frontend()
    behind.tell(HeardUntil(instant=None))
    in_rounds(behind, 1.0)
    assert behind.registered() == {"worker"}
    in_rounds(behind, 7.5)
    assert behind.registered() == set()


def test_it_says_so_once_when_it_is_far_behind(behind):
    since = behind.now
    assert behind.notes() == []
    behind.now += 1.6
    behind.tell(HeardUntil(instant=since))
    assert "broker is behind" in behind.notes()
    behind.now += 0.1
    behind.tell(HeardUntil(instant=since))
    assert behind.notes() == []
    behind.tell(HeardUntil(instant=None))
    assert behind.notes() == ["broker has caught up"]
    behind.tell(HeardUntil(instant=behind.now))
    behind.tell(HeardUntil(instant=None))
    assert behind.notes() == [], "a moment is not worth a line"


def test_what_is_read_late_is_taken_as_ever(behind):
    execution_id = behind.job().state.execution_id
    in_rounds(behind, 12.0)
    behind.image(execution_id)
    assert behind.statuses() == {}
    behind.tell(HeardUntil(instant=None))
    behind.frontend("job")
    assert behind.statuses() == {identifier("job"): JobState.ENDED}


def test_a_call_that_follows_another_of_its_key_is_admitted_however_late_both_are_read(broker):
    """Its frontend says first that the other one is over, and later what it says in each report."""
    broker.worker()
    broker.worker("other")
    broker.submit("old", key="alice")
    assert broker.statuses()[identifier("old")] is JobState.RUNNING
    waiting = Backlog(speaker)
    for message in (
        frontend_report(seq=2),
        submit("new", seq=3, key="alice"),
        frontend_report("new", seq=4),
    ):
        waiting.add([zmq.Frame(bytes(part)) for part in (b"to frontend", *encode(message))], 1)
    read = [decode([frame.bytes for frame in waiting.take()[1:]]) for _ in range(len(waiting))]
    refused = []
    for message in read:
        broker.from_frontend(message)
        refused += broker.to_frontend(Refuse)
    assert not refused
    assert identifier("new") in broker.core.state.jobs.by_waiter
