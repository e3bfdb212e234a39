"""How the broker finds what it looks for without looking at all."""

import pytest
from samples.wire import PARAMETERS, worker_report

from broker.estimates import MAX_AGE_S, NextFree, RunTimes
from broker.groups import Groups
from broker.turns import Turns
from broker.workers import Idle, IdleWorkers, Worker


def test_an_empty_group_is_forgotten():
    groups = Groups()
    groups.add("a", 1, "one")
    groups.add("a", 2, "two")
    groups.remove("a", 1)
    assert dict(groups.of("a")) == {2: "two"}
    groups.remove("a", 2)
    assert list(groups) == []
    assert dict(groups.of("a")) == {}
    with pytest.raises(KeyError):
        groups.remove("a", 2)


def idle_workers(*since):
    idle, workers = IdleWorkers(), []
    for number, instant in enumerate(since):
        report = worker_report(f"w{number}")
        worker = Worker(report=report, route=b"", heard_at=0.0, seq=1, slot=Idle(instant), number=number)
        idle.put(worker, instant)
        workers.append(worker)
    return idle, workers


def test_the_longest_idle_goes_first_and_of_two_the_one_registered_first():
    idle, _ = idle_workers(5.0, 3.0, 3.0)
    assert [worker.worker_id for worker in idle] == ["w1", "w2", "w0"]


def test_one_that_is_unwelcome_is_taken_if_there_is_no_other():
    idle, workers = idle_workers(3.0, 5.0)
    assert idle.longest(rather_not="w0") is workers[1]
    idle.put(workers[1], None)
    assert idle.longest(rather_not="w0") is workers[0]


def test_a_worker_that_is_idle_again_goes_to_the_end():
    idle, workers = idle_workers(3.0, 5.0)
    idle.put(workers[0], 7.0)
    assert [worker.worker_id for worker in idle] == ["w1", "w0"]
    assert len(idle) == 2


def test_the_queue_knows_its_first_job_and_its_length():
    turns = Turns()
    assert (turns.first(), len(turns)) == (None, 0)
    turns.join("a", b"a1")
    turns.join("a", b"a2")
    turns.join("b", b"b1")
    assert (turns.first(), len(turns)) == (b"a1", 3)
    turns.leave("a", b"a1", has_begun=True)
    assert (turns.first(), len(turns)) == (b"b1", 2)


def test_what_was_concluded_is_concluded_anew_when_there_is_more_to_see():
    times = RunTimes()
    times.observe(PARAMETERS, 2.0, now=0.0)
    assert times.expected_s(PARAMETERS, 1.0) == 2.0
    times.observe(PARAMETERS, 4.0, now=2.0)
    assert times.expected_s(PARAMETERS, 3.0) == 3.0
    times.observe(PARAMETERS, 6.0, now=3.0)
    assert times.lower_bound_s(PARAMETERS, 4.0) == 2.0


def test_and_when_something_has_become_too_old():
    times = RunTimes()
    for run_s, at in ((2.0, 0.0), (4.0, 10.0), (6.0, 10.0), (8.0, 10.0)):
        times.observe(PARAMETERS, run_s, now=at)
    assert times.lower_bound_s(PARAMETERS, 11.0) == 2.0
    assert times.lower_bound_s(PARAMETERS, MAX_AGE_S) == 4.0
    assert times.expected_s(PARAMETERS, MAX_AGE_S) == 6.0


def test_the_next_free_worker_is_looked_for_once_in_a_while():
    looks = []

    def look(wait_s):
        looks.append(wait_s)
        return wait_s

    free = NextFree(good_for_s=0.25)
    assert free.wait_s(10.0, lambda: look(4.0)) == 4.0
    assert free.wait_s(10.125, lambda: look(1.0)) == 3.875
    assert free.wait_s(10.25, lambda: look(1.0)) == 1.0
    assert looks == [4.0, 1.0]
