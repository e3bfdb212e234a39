"""The admission table, row by row and in its order (PROTOCOL.md §9)."""

import dataclasses

import pytest
from samples.wire import PARAMETERS, identifier

from broker.estimates import ENOUGH
from broker.events import DrainRequested
from proto.failures import RefusalReason
from proto.messages import ImageMade, WorkerPhase

SMALL = dataclasses.replace(PARAMETERS, steps=1)
LARGE = dataclasses.replace(PARAMETERS, steps=20)


def refused(broker, job="refused", **changes):
    broker.submit(job, **changes)
    refuse = broker.refusal()
    assert refuse.job_id == identifier(job)
    assert refuse.detail or refuse.reason is RefusalReason.NO_WORKERS
    assert broker.job(job) is None
    assert broker.counters.rejected[refuse.reason] > 0
    return refuse.reason, refuse.retry_after_ms


def learn(broker, run_s, parameters=PARAMETERS):
    """Let the broker see enough executions of which their worker says that they took so long."""
    for n in range(ENOUGH):
        job = f"learnt {n}"
        execution = broker.run_job(job, key="learner", parameters=parameters)
        broker.runs(execution, job)
        broker.image(execution, job, image=ImageMade(inference_time_s=run_s, seed=7))
        broker.frontend()


def test_no_worker_at_all(broker):
    assert refused(broker) == (RefusalReason.NO_WORKERS, None)


@pytest.mark.parametrize("phase", sorted(set(WorkerPhase) - {WorkerPhase.READY}))
def test_workers_that_are_not_ready(broker, phase):
    broker.worker(phase=phase)
    assert refused(broker) == (RefusalReason.WORKERS_NOT_READY, 1000)
    assert phase.value in broker.refusal().detail


def test_one_ready_worker_among_others_is_enough(broker):
    broker.worker("loads", phase=WorkerPhase.LOADING)
    broker.worker("ready")
    broker.submit()
    assert broker.started("ready")


def test_a_busy_worker_is_a_worker(broker):
    broker.worker()
    broker.run_job()
    assert refused(broker, key="other")[0] is RefusalReason.ALL_WORKERS_BUSY


def test_a_key_has_its_number_of_jobs(broker):
    for name in "abc":
        broker.worker(name)
    broker.submit("1", key="greedy", key_job_limit=2)
    broker.submit("2", key="greedy", key_job_limit=2)
    assert refused(broker, key="greedy", key_job_limit=2)[0] is RefusalReason.CLIENT_BUSY
    broker.submit("3", key="modest", key_job_limit=1)
    assert broker.starts()


def test_a_queued_job_counts_for_its_key(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("runs", key="1")
    broker.submit("waits", key="2")
    assert refused(broker, key="2")[0] is RefusalReason.CLIENT_BUSY


def test_the_queue_takes_what_its_limit_allows(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("0", key="0")
    for n in (1, 2):
        broker.submit(str(n), key=str(n))
        assert broker.statuses() == {identifier(n): "queued"}
    assert refused(broker, key="3")[0] is RefusalReason.ALL_WORKERS_BUSY


def test_the_rows_are_judged_in_order(broker):
    """Each step removes the topmost reason, and the next one shows."""
    broker.worker(phase=WorkerPhase.DRAINING)
    broker.worker("second")
    broker.submit("first")
    broker.tell(DrainRequested())
    assert refused(broker)[0] is RefusalReason.BROKER_DRAINING
    broker.core.state.draining = False
    broker.leaves("second")
    broker.leaves("worker")
    assert refused(broker)[0] is RefusalReason.CLIENT_BUSY
    assert refused(broker, key="other")[0] is RefusalReason.NO_WORKERS
    broker.worker("third", phase=WorkerPhase.LOADING)
    assert refused(broker, key="other")[0] is RefusalReason.WORKERS_NOT_READY
    broker.worker("fourth")
    assert broker.starts(), "the job that came back went first"
    assert refused(broker, key="other", remaining_ms=0)[0] is RefusalReason.ALL_WORKERS_BUSY


def test_a_deadline_that_no_execution_has_met(broker):
    broker.worker()
    learn(broker, 4.0)
    assert refused(broker, remaining_ms=3_900) == (RefusalReason.DEADLINE_TOO_SHORT, None)
    assert "3.9 s" in broker.refusal().detail
    assert refused(broker, remaining_ms=3_900, parameters=LARGE)[0] is RefusalReason.DEADLINE_TOO_SHORT
    broker.submit("smaller", remaining_ms=100, parameters=SMALL)
    assert broker.started(), "nothing is known of such a small one"


def test_a_deadline_that_may_be_met_is_given_its_chance(broker):
    broker.worker()
    learn(broker, 4.0)
    broker.submit(remaining_ms=4_100)
    assert broker.started()


def test_a_deadline_covers_the_wait_as_well(queueing_broker):
    broker = queueing_broker
    broker.worker()
    learn(broker, 4.0)
    broker.run_job("runs", key="1")
    assert refused(broker, key="2", remaining_ms=7_000)[0] is RefusalReason.DEADLINE_TOO_SHORT
    broker.submit("patient", key="2", remaining_ms=9_000)
    assert broker.statuses() == {identifier("patient"): "queued"}


def test_the_retry_delay_is_what_the_running_job_still_needs(broker):
    broker.worker()
    execution = broker.run_job()
    broker.after(1.0)
    broker.runs(execution, step=1)
    assert refused(broker, key="other") == (RefusalReason.ALL_WORKERS_BUSY, 3000)
    assert refused(broker) == (RefusalReason.CLIENT_BUSY, 3000)


def test_before_the_first_step_the_retry_delay_is_what_others_took(broker):
    broker.worker()
    learn(broker, 4.0)
    broker.run_job()
    broker.after(1.0)
    reason, retry_after_ms = refused(broker, key="other")
    assert reason is RefusalReason.ALL_WORKERS_BUSY
    assert retry_after_ms == pytest.approx(3000, abs=300)


def test_of_several_workers_the_first_that_will_be_free_counts(broker):
    for name in ("slow", "fast"):
        broker.worker(name)
    slow = broker.run_job("a", "slow", key="1")
    fast = broker.run_job("b", "fast", key="2")
    broker.after(1.0)
    broker.runs(slow, "a", "slow", step=1)
    broker.runs(fast, "b", "fast", step=2)
    assert refused(broker, key="3") == (RefusalReason.ALL_WORKERS_BUSY, 1000)


def test_the_retry_delay_has_bounds(broker):
    broker.worker()
    execution = broker.run_job()
    assert refused(broker, key="other")[1] == 1000  # nothing is known yet: ask again after the next report
    for _ in range(60):
        broker.after(1.0)
        broker.runs(execution, step=0)
        broker.frontend("job")
    broker.runs(execution, step=1)
    assert refused(broker, key="other")[1] == 60_000


def test_a_worker_whose_connection_is_gone_gets_no_job(broker):
    broker.worker()
    broker.unreachable()
    assert refused(broker)[0] is RefusalReason.WORKERS_NOT_READY
    broker.worker()
    broker.submit("next")
    assert broker.started()
