"""Images of which a worker still makes the PNG: listed as held, without bytes (PROTOCOL.md §5.4)."""

import pytest
from samples.wire import claim, held, identifier

from broker.jobs import Dispatched, Returned
from broker.workers import Unclear
from proto.failures import FailureCode
from proto.messages import JobState, Outcome, Start

REPEAT, AGAIN = identifier("repeat"), identifier("again")


def unfinished(execution, job="job", **changes):
    return held(execution, job, size_bytes=0, **changes)


def keyed(execution, job="job", **changes):
    return held(execution, claim=claim(job, idempotency_hash=AGAIN), **changes)


@pytest.fixture
def drawn(broker):
    """The execution of a job whose worker has drawn it, and says so."""
    broker.worker()
    execution = broker.run_job()
    broker.worker(held=(unfinished(execution),))
    return execution


@pytest.fixture
def left(broker):
    """Likewise, of a call with an idempotency key that has left."""
    broker.worker()
    broker.submit(idempotency=AGAIN)
    execution = broker.started().execution_id
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN))
    broker.worker(held=(keyed(execution, size_bytes=0),))
    broker.frontend()
    assert broker.job() is None
    return execution


def test_its_worker_takes_the_next_job(broker, drawn):
    broker.submit("next", key="other")
    assert broker.started().claim.job_id == identifier("next")
    assert broker.job().current_execution == drawn


def test_it_is_waited_for_and_then_delivered(broker, drawn):
    assert broker.view().resend == (), "it comes by itself"
    assert isinstance(broker.job().state, Dispatched)
    broker.worker(held=(unfinished(drawn),))
    assert broker.starts() == []
    broker.image(drawn)
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.image is not None
    assert broker.counters.completed == 1


def test_its_png_is_asked_for_once_it_is_there_and_was_missed(broker, drawn):
    broker.worker(held=(held(drawn),))
    assert broker.view().resend == (drawn,)


def test_an_image_that_comes_to_nothing_is_drawn_again_elsewhere(broker, drawn):
    broker.worker("other")
    broker.failure(drawn, FailureCode.WORKER_LOST)
    start = broker.started("other")
    assert (start.claim.attempts, start.claim.crashes) == (2, 0)


def test_an_image_that_is_not_listed_any_more_is_drawn_again(broker, drawn):
    broker.worker("other")
    broker.worker()
    assert broker.started("other").claim.attempts == 2


def test_it_is_lost_with_its_worker(broker, drawn):
    broker.leaves("worker")
    assert isinstance(broker.job().state, Returned)


def test_a_later_broker_adopts_it(broker):
    broker.worker(held=(unfinished(b"from before".ljust(16)),))
    broker.submit(accepted=True, attempts=1)
    assert broker.starts() == []
    assert broker.statuses() == {identifier("job"): JobState.RUNNING}
    assert broker.job().attempts == 1


def test_what_nobody_wants_is_released_as_a_finished_one_is(broker, drawn):
    broker.frontend()
    assert broker.view().release == (drawn,)


def test_one_that_a_repeat_may_ask_for_is_kept(broker, left):
    assert broker.view().keep == (left,)


def test_a_repeat_waits_for_it_as_for_what_runs(broker, left):
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.starts() == []
    assert broker.statuses() == {REPEAT: JobState.RUNNING}
    broker.image(left)
    (outcome,) = broker.to_frontend(Outcome)
    assert (outcome.job_id, outcome.execution_id) == (REPEAT, left)
    assert broker.counters.completed == 1


def test_a_repeat_of_what_comes_to_nothing_is_drawn_again(broker, left):
    broker.submit("repeat", idempotency=AGAIN)
    broker.failure(left, FailureCode.WORKER_LOST)
    assert broker.started().claim.job_id == REPEAT


def test_a_repeat_after_that_finds_no_image_though_no_report_has_said_so(broker, left):
    broker.failure(left, FailureCode.WORKER_LOST)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.started().claim.job_id == REPEAT


def test_a_repeat_after_the_png_finds_it_though_no_report_has_said_so(broker, left):
    broker.image(left)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.starts() == []
    assert broker.statuses() == {REPEAT: JobState.ENDED}


@pytest.mark.parametrize(("unfinished_one", "finished_one"), [("a", "b"), ("b", "a")])
def test_a_finished_image_goes_before_one_that_may_come_to_nothing(broker, unfinished_one, finished_one):
    unfinished_one, finished_one = identifier(unfinished_one), identifier(finished_one)
    broker.worker("slow", held=(keyed(unfinished_one, size_bytes=0),))
    broker.worker("fast", held=(keyed(finished_one),))
    assert broker.view("fast").keep == (finished_one,)
    broker.worker("slow", held=(keyed(unfinished_one, size_bytes=0),))
    assert broker.view("slow").release == (unfinished_one,)


def test_a_worker_that_ran_out_of_memory_gets_nothing_until_it_says_how_it_is(broker):
    broker.worker()
    execution = broker.run_job()
    broker.failure(execution, FailureCode.OUT_OF_MEMORY)
    assert broker.to_worker(Start) == []
    (worker,) = broker.core.state.workers
    assert isinstance(worker.slot, Unclear)
    broker.worker()
    assert broker.started().claim.attempts == 2
