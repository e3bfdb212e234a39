"""API keys take turns: what one of them queues keeps no other waiting for more than a job of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples.broker_driver import Driver

from broker.turns import Turns
from proto.failures import FailureCode, RefusalReason
from proto.messages import ImageMade

KEYS = ("a", "b", "c")


@pytest.fixture
def broker():
    driver = Driver(queue_limit=8)
    driver.worker()
    return driver


def name_of(start):
    return start.claim.job_id.rstrip(b".").decode()


def submit(broker, *jobs, share=1.0):
    """The key is the first letter of a job's name."""
    for job in jobs:
        broker.submit(job, key=job[0], key_job_limit=100, key_queue_share=share)


def order_from(broker, job, execution):
    """In which order the one worker gets the jobs, if it draws one after the other."""
    order = []
    while True:
        broker.image(execution, job)
        if not broker.starts():
            return order
        start = broker.started()
        job, execution = name_of(start), start.execution_id
        order.append(job)


def test_keys_take_turns_and_within_a_key_the_first_comes_first(broker):
    submit(broker, "a0")
    execution = broker.started().execution_id
    submit(broker, "a1", "a2", "a3", "b1", "b2", "c1")
    assert order_from(broker, "a0", execution) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_key_that_always_comes_again_waits_for_its_turn(broker):
    submit(broker, "a0")
    first = broker.started().execution_id
    submit(broker, "b1", "b2", "a1")
    broker.image(first, "a0")
    assert name_of(broker.started()) == "b1"
    second = broker.started().execution_id
    submit(broker, "c1")
    broker.image(second, "b1")
    assert name_of(broker.started()) == "a1", "which came before b had had its turn"
    third = broker.started().execution_id
    submit(broker, "a2")
    assert order_from(broker, "a1", third) == ["b2", "c1", "a2"]


def test_a_job_that_came_back_goes_before_whoever_has_the_turn(broker):
    submit(broker, "a0")
    execution = broker.started().execution_id
    submit(broker, "b1", "a1")
    broker.runs(execution, "a0", claim=broker.job("a0").claim)
    broker.failure(execution, FailureCode.ENGINE_CRASHED, "a0")
    broker.worker()
    assert name_of(broker.started()) == "a0"
    assert order_from(broker, "a0", broker.started().execution_id) == ["b1", "a1"]


def test_a_key_fills_its_share_of_the_queue_and_no_more(broker):
    submit(broker, "a0", "a1", "a2", share=0.25)
    assert broker.job("a2"), "the second that waits"
    submit(broker, "a3", share=0.25)
    refusal = broker.refusal()
    assert refusal.reason is RefusalReason.CLIENT_QUEUE_FULL
    assert refusal.detail == "2 waiting, 2 of the queue's 8 allowed"
    assert refusal.retry_after_ms == 1000
    submit(broker, "b1", share=0.25)
    assert broker.job("b1")


def test_the_smallest_share_is_one_job_and_no_worker_is_left_idle_for_it():
    broker = Driver(queue_limit=1)
    for worker in "xy":
        broker.worker(worker)
    submit(broker, "a1", "a2", "a3", share=0.01)
    assert broker.job("a3"), "two run, and one waits"
    submit(broker, "a4", share=0.01)
    assert broker.refusal().reason is RefusalReason.ALL_WORKERS_BUSY


def test_a_deadline_is_judged_as_if_the_new_job_were_the_next(broker):
    """Its key may be the one whose turn it is, whoever else waits."""
    for n in range(3):
        submit(broker, f"l{n}")
        broker.image(broker.started().execution_id, f"l{n}", image=ImageMade(inference_time_s=4.0, seed=7))
    submit(broker, "a0", "a1", "a2", "a3")
    broker.submit("hasty", key="b", remaining_ms=7_900)
    assert broker.refusal().reason is RefusalReason.DEADLINE_TOO_SHORT
    broker.submit("just", key="b", remaining_ms=8_100)
    assert broker.job("just")


@given(st.lists(st.tuples(st.sampled_from(("join", "begin", "end")), st.sampled_from(KEYS))))
def test_no_key_begins_two_jobs_while_one_of_another_waits(steps):
    turns = Turns()
    waiting = {key: [] for key in KEYS}
    begun_since = {}
    """By key with a queued job: who has begun a job since it had its last turn, or came."""
    for number, (what, key) in enumerate(steps):
        if what == "join":
            if not waiting[key]:
                begun_since[key] = set()
            waiting[key].append(number)
            turns.join(key, number)
        elif what == "end" and waiting[key]:
            turns.leave(key, waiting[key].pop(), has_begun=False)
        elif what == "begin" and len(turns):
            first = next(iter(turns))
            owner = next(key for key in KEYS if first in waiting[key])
            assert waiting[owner].pop(0) == first, "within a key, who came first goes first"
            turns.leave(owner, first, has_begun=True)
            for other in KEYS:
                if other != owner and waiting[other]:
                    assert owner not in begun_since[other], f"{owner} once more, and {other} waits"
                    begun_since[other].add(owner)
            begun_since[owner] = set()
        assert sorted(turns) == sorted(job for jobs in waiting.values() for job in jobs)
        assert [turns.count(key) for key in KEYS] == [len(waiting[key]) for key in KEYS]
