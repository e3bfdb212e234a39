"""A broker beside others: what it leaves alone, what it lets go, what it takes over (PROTOCOL.md §10)."""

import pytest
from samples.broker_driver import Driver
from samples.wire import claim, held, identifier

from broker.jobs import Dispatched
from proto.failures import FailureCode, RefusalReason
from proto.messages import FrontendView, JobState, Outcome, Refuse, Start

JOB = identifier("job")
THEIRS = identifier("theirs")
GRACE_S = 3.0


@pytest.fixture(params=[False, True], ids=["", "of the first brokers"])
def standby(request) -> Driver:
    """It has run for long, hears a frontend and a worker, and has no job."""
    broker = Driver(rebuild_s=GRACE_S, is_first=request.param)
    broker.frontend()
    broker.after(100.0)
    broker.worker()
    broker.frontend()
    return broker


def elsewhere(**changes):
    return held(THEIRS, wanted_elsewhere=True, **changes)


# --- What it wants -----------------------------------------------------------------------------


def test_a_view_says_what_its_jobs_want_there(standby):
    execution_id = standby.run_job()
    assert standby.view().wanted == (execution_id,)
    standby.frontend()
    assert standby.view().wanted == ()


def test_so_do_views_that_ask_for_an_image_and_those_before_the_first_report(standby):
    standby.submit()
    execution_id = standby.started().execution_id
    standby.worker()
    assert standby.view().wanted == (execution_id,)
    standby.worker(held=(held(execution_id),))
    standby.image(execution_id)
    standby.after(1.6)
    standby.worker(held=(held(execution_id),))
    standby.frontend("job")
    assert (standby.view().resend, standby.view().wanted) == ((execution_id,), (execution_id,))


def test_a_new_broker_says_that_it_is_one_and_when_it_is_none_any_more():
    broker = Driver(rebuild_s=GRACE_S)
    broker.frontend()
    (view,) = broker.to_frontend(FrontendView)
    assert view.rebuilding
    broker.after(GRACE_S + 0.1)
    *_, view = broker.to_frontend(FrontendView)
    assert not view.rebuilding


# --- What it leaves alone ----------------------------------------------------------------------


def test_what_another_broker_wants_goes_on_for_good(standby):
    for _ in range(20):
        standby.runs(THEIRS, wanted_elsewhere=True)
        assert standby.view().cancel == ()
        standby.after(1.0)


@pytest.mark.parametrize("failure", [None, FailureCode.ENGINE_ERROR])
def test_what_another_broker_waits_for_is_neither_released_nor_kept(standby, failure):
    theirs = elsewhere(claim=claim(idempotency_hash=identifier("again")), failure=failure)
    for _ in range(20):
        standby.worker(held=(theirs,))
        assert (standby.view().release, standby.view().keep) == ((), ())
        standby.after(1.0)


def test_it_makes_its_worker_busy_and_counts_for_its_key(standby):
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.submit("other", key="another key")
    assert standby.refusal().reason is RefusalReason.ALL_WORKERS_BUSY
    standby.submit("other")
    assert standby.refusal().reason is RefusalReason.CLIENT_BUSY


def test_what_nobody_wants_is_left_alone_for_a_while_in_which_its_call_may_come(standby):
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.after(5.0)
    standby.runs(THEIRS)
    standby.after(GRACE_S - 0.1)
    standby.runs(THEIRS)
    assert standby.view().cancel == ()
    standby.after(0.2)
    standby.runs(THEIRS)
    assert standby.view().cancel == (THEIRS,)


def test_what_it_has_begun_itself_and_only_another_one_wants_is_that_ones_from_then_on(standby):
    """Which has detached it, perhaps, since the job here was over."""
    execution_id = standby.run_job()
    standby.frontend()
    assert standby.view().cancel == (execution_id,)
    theirs = claim(idempotency_hash=identifier("again"), detach=True)
    standby.runs(execution_id, claim=theirs, wanted_elsewhere=True)
    standby.runs(execution_id, claim=theirs)
    assert standby.view().cancel == ()
    standby.after(GRACE_S)
    standby.runs(execution_id, claim=theirs)
    assert standby.view().cancel == ()


def test_the_same_of_what_is_held(standby):
    standby.worker(held=(elsewhere(),))
    standby.worker(held=(held(THEIRS),))
    assert standby.view().release == ()
    standby.after(GRACE_S)
    standby.worker(held=(held(THEIRS),))
    assert standby.view().release == (THEIRS,)


def test_the_while_begins_again_when_another_one_has_wanted_it(standby):
    standby.runs(THEIRS)
    standby.after(GRACE_S - 0.1)
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.runs(THEIRS)
    standby.after(1.0)
    standby.runs(THEIRS)
    assert standby.view().cancel == ()


def test_a_broker_that_stood_still_gives_it_its_while_all_the_same(standby):
    standby.runs(THEIRS)
    standby.now += 60.0  # no timer, no message
    standby.runs(THEIRS)
    assert standby.view().cancel == ()


def test_an_orphan_of_another_broker_has_its_grace_here(standby):
    keyed = claim(idempotency_hash=identifier("again"))
    for _ in range(9):
        standby.runs(THEIRS, claim=keyed)
        assert standby.view().cancel == ()
        standby.after(3.0)
    standby.submit("repeat", frontend="second", idempotency=identifier("again"))
    assert standby.job("repeat").current_execution == THEIRS


def test_another_execution_of_a_job_that_has_one_is_cancelled_once_no_other_broker_wants_it(standby):
    standby.run_job(attempts=1, accepted=True)
    standby.runs(THEIRS, worker="second", wanted_elsewhere=True)
    assert standby.view("second").cancel == ()
    standby.runs(THEIRS, worker="second")
    assert standby.view("second").cancel == (THEIRS,)


# --- What it takes over ------------------------------------------------------------------------


def test_a_call_that_comes_over_finds_its_execution_without_any_window(standby):
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.submit(accepted=True, attempts=1, execution_id=THEIRS)
    assert standby.statuses() == {JOB: JobState.RUNNING}
    assert standby.view().wanted == (THEIRS,)
    assert standby.starts() == []


def test_so_does_one_that_was_not_known_to_be_accepted(standby):
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.submit()
    assert standby.statuses() == {JOB: JobState.RUNNING}


def test_and_one_whose_image_is_held(standby):
    standby.worker(held=(elsewhere(),))
    standby.submit(accepted=True, attempts=1)
    assert (standby.view().resend, standby.view().wanted) == ((THEIRS,), (THEIRS,))


def test_of_calls_that_two_brokers_had_accepted_under_one_key_those_for_one_image_are_one_job(standby):
    again = identifier("again")
    standby.submit("other", idempotency=again, digest=identifier("another"), accepted=True)
    standby.submit(idempotency=again, accepted=True)
    standby.submit("repeat", idempotency=again, accepted=True)
    assert set(standby.job().waiters) == {JOB, identifier("repeat")}
    assert set(standby.job("other").waiters) == {identifier("other")}


def test_a_repeat_joins_what_another_broker_runs(standby):
    again = identifier("again")
    standby.runs(THEIRS, claim=claim(idempotency_hash=again), wanted_elsewhere=True)
    standby.submit("repeat", idempotency=again)
    assert standby.job("repeat").current_execution == THEIRS


def test_a_job_whose_attempt_failed_takes_what_another_broker_has_begun_of_its_call_meanwhile(standby):
    again = identifier("again")
    execution_id = standby.run_job(idempotency=again)
    standby.runs(
        THEIRS, "their job", "second", claim=claim("their job", idempotency_hash=again), wanted_elsewhere=True
    )
    assert standby.job().current_execution == execution_id
    standby.failure(execution_id, FailureCode.OUT_OF_MEMORY)
    standby.worker()
    assert standby.job().current_execution == THEIRS
    assert standby.starts() == []


@pytest.mark.parametrize(
    ("counters", "code"),
    [({"crashes": 2}, FailureCode.POISON_JOB), ({"attempts": 3}, FailureCode.ENGINE_CRASHED)],
)
def test_what_failed_of_it_for_another_broker_meanwhile_counts_before_it_is_begun_again(
    standby, counters, code
):
    """While it ran here nobody looked at what is held of it elsewhere."""
    execution_id = standby.run_job()
    failed = held(THEIRS, claim=claim(**counters), failure=FailureCode.ENGINE_CRASHED)
    standby.worker("second", held=(failed,))
    standby.failure(execution_id, FailureCode.ENGINE_CRASHED, crashes=1)
    assert standby.starts() == []
    (outcome,) = standby.to_frontend(Outcome)
    assert outcome.failure.code is code


def test_two_brokers_that_started_something_on_one_worker(standby):
    """This one was later: its job waits, and the attempt does not count."""
    standby.submit()
    execution_id = standby.started().execution_id
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert standby.job().attempts == 0
    standby.runs(THEIRS, "their job", wanted_elsewhere=True)
    standby.after(1.0)
    standby.worker()
    assert standby.started().claim.job_id == JOB


def test_a_report_of_what_another_broker_runs_there_may_have_crossed_the_start(standby):
    """It may be over when the START arrives, which then begins."""
    standby.submit()
    execution_id = standby.started().execution_id
    standby.runs(THEIRS, "their job", wanted_elsewhere=True)
    standby.worker()
    assert standby.view().wanted == (execution_id,)
    assert standby.starts() == []
    standby.runs(execution_id)
    assert (standby.job().current_execution, standby.job().attempts) == (execution_id, 1)


def test_if_it_is_not_over_the_start_is_refused_and_the_attempt_does_not_count(standby):
    standby.submit()
    execution_id = standby.started().execution_id
    standby.runs(THEIRS, "their job", wanted_elsewhere=True)
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert (standby.job().current_execution, standby.job().attempts) == (None, 0)


def test_a_job_whose_start_is_refused_takes_what_its_worker_was_told_to_run_of_its_call_instead(standby):
    standby.worker("second")
    again = identifier("again")
    standby.submit(idempotency=again)
    execution_id = standby.started().execution_id
    standby.runs(THEIRS, "their job", claim=claim("their job", idempotency_hash=again), wanted_elsewhere=True)
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert standby.job().current_execution == THEIRS
    assert standby.starts() == []


def test_with_the_refusal_another_call_takes_over_what_was_begun_for_it_there(standby):
    """It came when the slot was thought to be that of the START; the broker that began it has let it go."""
    standby.submit()
    execution_id = standby.started().execution_id
    theirs = claim("moved", idempotency_hash=identifier("again"), detach=True)
    standby.submit(
        "moved", accepted=True, attempts=1, execution_id=THEIRS, idempotency=identifier("again"), detach=True
    )
    standby.runs(THEIRS, "moved", claim=theirs)
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert standby.job("moved").current_execution == THEIRS
    assert (standby.view().wanted, standby.view().cancel) == ((THEIRS,), ())
    assert standby.starts() == []


def test_it_does_so_at_once_also_where_no_worker_is_idle(standby):
    """Before another broker ends it, as nobody waits for it there any more."""
    again = identifier("again")
    standby.submit(idempotency=again)
    execution_id = standby.started().execution_id
    standby.runs(THEIRS, "their job", claim=claim("their job", idempotency_hash=again), wanted_elsewhere=True)
    assert standby.view().wanted == (execution_id,)
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert standby.job().current_execution == THEIRS
    assert standby.view().wanted == (THEIRS,)


def test_or_takes_over_the_image_that_was_drawn_for_it_there_meanwhile(standby):
    again = identifier("again")
    standby.submit(idempotency=again)
    execution_id = standby.started().execution_id
    standby.worker(held=(elsewhere(claim=claim("their job", idempotency_hash=again)),))
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_NOT_READY, execution_id=execution_id))
    assert standby.job().current_execution == THEIRS
    assert (standby.view().wanted, standby.starts()) == ((THEIRS,), [])


def test_but_nothing_of_a_worker_that_cannot_be_reached(standby):
    again = identifier("again")
    standby.submit(idempotency=again)
    execution_id = standby.started().execution_id
    standby.runs(THEIRS, "their job", claim=claim("their job", idempotency_hash=again), wanted_elsewhere=True)
    standby.unreachable()
    standby.worker("second")
    standby.from_worker(Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=execution_id))
    assert standby.started("second").claim.job_id == JOB


def test_a_worker_that_still_runs_theirs_after_a_while_has_lost_the_start_or_its_refusal(standby):
    """Or has begun it in between: the attempt counts."""
    standby.submit()
    standby.started()
    standby.after(1.4)
    standby.runs(THEIRS, "their job", wanted_elsewhere=True)
    assert standby.job().current_execution is not None
    standby.after(0.2)
    standby.runs(THEIRS, "their job", wanted_elsewhere=True)
    assert (standby.job().current_execution, standby.job().attempts) == (None, 1)
    standby.worker()
    assert standby.started().claim.attempts == 2


# --- What it lets go ---------------------------------------------------------------------------


def test_a_call_that_has_moved_is_forgotten_and_its_execution_not_cancelled(standby):
    execution_id = standby.run_job()
    standby.moved("job")
    assert standby.job() is None
    assert (standby.view().wanted, standby.view().cancel) == ((), ())
    standby.runs(execution_id)
    assert standby.view().cancel == ()
    standby.runs(execution_id, wanted_elsewhere=True)
    standby.after(5.0)
    standby.runs(execution_id, wanted_elsewhere=True)
    assert standby.view().cancel == ()
    assert standby.counters.cancelled == 0


def test_nor_is_its_image_released(standby):
    execution_id = standby.run_job()
    standby.image(execution_id)
    standby.worker(held=(held(execution_id),))
    standby.moved("job")
    standby.worker(held=(held(execution_id),))
    assert standby.view().release == ()


def test_nor_is_a_start_called_back_that_is_on_its_way(standby):
    standby.submit()
    execution_id = standby.started().execution_id
    standby.moved("job")
    assert standby.view().cancel == ()
    standby.runs(execution_id)
    assert standby.view().cancel == ()


def test_if_nobody_takes_it_over_it_ends_after_the_while(standby):
    execution_id = standby.run_job()
    standby.moved("job")
    standby.after(GRACE_S + 0.1)
    standby.runs(execution_id)
    assert standby.view().cancel == (execution_id,)


def test_a_job_stays_as_long_as_another_call_waits_for_it(standby):
    again = identifier("again")
    execution_id = standby.run_job(idempotency=again)
    standby.submit("repeat", frontend="second", idempotency=again)
    standby.moved("job")
    assert standby.job().current_execution == execution_id
    standby.moved("repeat", frontend="second")
    assert standby.job() is None


def test_a_call_that_has_come_back_since_is_not_let_go(standby):
    standby.run_job()
    standby.submit(seq=1000, accepted=True)
    standby.moved("job", seq=999)
    assert isinstance(standby.job().state, Dispatched)


def test_nor_is_it_ended_when_the_last_of_its_other_calls_leaves(standby):
    again = identifier("again")
    execution_id = standby.run_job(idempotency=again)
    standby.submit("repeat", frontend="second", idempotency=again)
    standby.moved("job")
    standby.frontend(frontend="second")
    assert standby.job() is None
    keyed = claim(idempotency_hash=again)
    for _ in range(round(standby.timing.orphan_grace_s)):
        standby.runs(execution_id, claim=keyed)
        assert standby.view().cancel == ()
        standby.after(1.0)
    standby.runs(execution_id, claim=keyed)
    assert standby.view().cancel == (execution_id,)


def test_a_detached_job_moves_with_its_call(standby):
    standby.run_job(idempotency=identifier("again"), detach=True)
    standby.moved("job")
    assert standby.job() is None


def test_a_call_of_a_frontend_that_was_thought_to_be_lost_moves_too(standby):
    execution_id = standby.run_job(idempotency=identifier("again"))
    for _ in range(5):
        standby.after(2.0)
        standby.runs(execution_id)
    assert standby.job().orphaned_at is not None
    standby.moved("job")
    assert standby.job() is None


def test_what_others_wait_for_is_not_let_go_by_a_stranger(standby):
    standby.run_job()
    standby.moved("job", frontend="second")
    assert standby.job() is not None


def test_a_job_that_waits_is_let_go_without_a_word_to_any_worker(standby):
    standby.runs(THEIRS, wanted_elsewhere=True)
    standby.submit("other", key="other", accepted=True)
    standby.moved("other")
    assert standby.job("other") is None
    standby.worker()
    assert standby.to_worker(Start) == []
