"""A broker that has just started learns from its peers what an earlier one knew (PROTOCOL.md §7)."""

import pytest
from samples.broker_driver import Driver
from samples.wire import claim, held, identifier, leave, running

from broker.jobs import Dispatched, Returned
from proto.failures import FailureCode, RefusalReason
from proto.messages import FrontendView, JobState, Outcome, Refuse, WorkerView

JOB = identifier("job")
EARLIER = identifier("earlier")
WINDOW_S = 3.0


@pytest.fixture
def restarted() -> Driver:
    """It has not heard of anybody yet."""
    return Driver(rebuild_s=WINDOW_S)


# --- What workers run --------------------------------------------------------------------------


def test_an_execution_that_a_worker_still_runs_is_adopted(restarted):
    restarted.runs(EARLIER)
    assert restarted.view().cancel == ()
    restarted.submit(accepted=True, attempts=1)
    assert restarted.starts() == []
    assert restarted.statuses() == {JOB: JobState.RUNNING}
    assert restarted.job().current_execution == EARLIER
    restarted.image(EARLIER)
    (outcome,) = restarted.to_frontend(Outcome)
    assert (outcome.execution_id, outcome.attempts) == (EARLIER, 1)


def test_it_makes_no_difference_who_speaks_first(restarted):
    restarted.submit(accepted=True, attempts=1)
    assert isinstance(restarted.job().state, Returned)
    restarted.runs(EARLIER)
    assert restarted.job().current_execution == EARLIER
    assert restarted.view().cancel == ()
    assert restarted.statuses() == {JOB: JobState.RUNNING}


def test_an_image_that_a_worker_holds_is_asked_for(restarted):
    restarted.worker(held=(held(EARLIER),))
    assert restarted.view().release == ()
    restarted.submit(accepted=True)
    assert restarted.view().resend == (EARLIER,)
    restarted.image(EARLIER)
    assert len(restarted.to_frontend(Outcome)) == 1
    assert restarted.counters.completed == 1


def test_a_failure_that_a_worker_holds_counts_and_is_no_answer(restarted):
    failed = held(EARLIER, claim=claim(attempts=2, crashes=1), failure=FailureCode.ENGINE_CRASHED)
    restarted.submit(accepted=True, attempts=1)
    restarted.worker(held=(failed,))
    assert (restarted.job().attempts, restarted.job().crashes) == (2, 1)
    restarted.after(2.0)
    restarted.frontend("job")
    restarted.worker(held=(failed,))
    restarted.after(1.3)
    (start,) = restarted.starts()
    assert (start.claim.attempts, start.claim.crashes) == (3, 1)


@pytest.mark.parametrize(
    "changes", [{"key_fingerprint": "another"}, {"parameters_digest": identifier("another")}]
)
def test_an_execution_of_another_key_or_image_is_not_adopted(restarted, changes):
    restarted.runs(EARLIER, claim=claim(**changes))
    restarted.submit(accepted=True)
    assert restarted.job().current_execution is None
    restarted.runs(EARLIER, claim=claim(**changes))
    assert restarted.job().current_execution is None


def test_an_execution_that_was_told_to_stop_is_not_adopted(restarted):
    restarted.worker(running=running(EARLIER, stopping=True))
    restarted.submit(accepted=True)
    assert restarted.job().current_execution is None


def test_of_two_executions_of_one_job_the_second_is_unwanted(restarted):
    restarted.runs(EARLIER, worker="first")
    restarted.submit(accepted=True)
    restarted.runs(identifier("other"), worker="second")
    assert restarted.view("second").cancel == (identifier("other"),)
    assert restarted.job().current_execution == EARLIER


@pytest.mark.parametrize("known", ["first", "second"])
def test_of_two_executions_the_one_that_the_frontend_knows_is_taken(restarted, known):
    for name in ("first", "second"):
        restarted.runs(identifier(name), worker=name)
    restarted.submit(accepted=True, execution_id=identifier(known))
    assert restarted.job().current_execution == identifier(known)


def test_what_nobody_claims_is_cancelled_and_released_at_the_end(restarted):
    restarted.runs(EARLIER, held=(held(identifier("old"), "old"),))
    assert (restarted.view().cancel, restarted.view().release) == ((), ())
    restarted.after(WINDOW_S)
    restarted.runs(EARLIER, held=(held(identifier("old"), "old"),))
    assert (restarted.view().cancel, restarted.view().release) == ((EARLIER,), (identifier("old"),))


def test_a_worker_that_was_lost_and_comes_back_may_go_on(restarted):
    broker = restarted
    broker.after(WINDOW_S)
    broker.worker()
    broker.after(WINDOW_S)
    broker.worker()
    execution = broker.run_job()
    for _ in range(8):
        broker.after(1.0)
        broker.frontend("job")
    assert broker.registered() == set()
    assert isinstance(broker.job().state, Returned)
    broker.runs(execution)
    assert broker.job().current_execution == execution
    assert broker.starts() == []


# --- What frontends want -----------------------------------------------------------------------


def test_an_accepted_job_that_nobody_runs_waits_for_the_end_and_goes_first(restarted):
    restarted.worker()
    restarted.submit(accepted=True, attempts=1)
    assert restarted.starts() == []
    assert restarted.statuses() == {JOB: JobState.QUEUED}
    restarted.submit("new", key="other")
    assert restarted.statuses() == {identifier("new"): JobState.PENDING}
    restarted.worker()
    restarted.frontend("job", "new")
    restarted.after(2.0)
    restarted.frontend("job", "new")
    restarted.worker()
    restarted.after(1.3)
    (start,) = restarted.starts()
    assert start.claim.job_id == JOB
    assert restarted.refusal().job_id == identifier("new")
    assert restarted.refusal().reason is RefusalReason.ALL_WORKERS_BUSY


def test_a_new_job_is_judged_at_the_end_with_the_time_that_it_has_left(restarted):
    restarted.worker()
    restarted.submit(remaining_ms=10_000)
    assert restarted.statuses() == {JOB: JobState.PENDING}
    assert restarted.job() is None
    for _ in range(3):
        restarted.after(0.9)
        restarted.worker()
        restarted.frontend("job")
        assert restarted.statuses() == {JOB: JobState.PENDING}
    restarted.after(0.5)
    (start,) = restarted.starts()
    assert start.claim.remaining_ms == pytest.approx(7_000, abs=251)


def test_a_job_whose_frontend_had_not_heard_of_its_execution_takes_it_over(restarted):
    restarted.worker("idle")
    restarted.runs(EARLIER)
    restarted.submit()
    assert restarted.job().current_execution == EARLIER
    assert restarted.statuses() == {JOB: JobState.RUNNING}
    restarted.after(WINDOW_S)
    assert restarted.starts() == []


def test_the_same_with_an_image_that_is_held(restarted):
    restarted.submit()
    restarted.worker(held=(held(EARLIER),))
    restarted.after(WINDOW_S)
    assert restarted.starts() == []
    assert EARLIER in {wanted for view in restarted.to_worker(WorkerView) for wanted in view.resend}


def test_a_pending_job_that_is_given_up_is_forgotten(restarted):
    restarted.worker()
    restarted.submit()
    restarted.frontend()
    restarted.after(2.0)
    restarted.worker()
    restarted.after(2.0)
    assert restarted.starts() == []
    assert restarted.job() is None


def test_a_pending_job_of_a_lost_frontend_is_forgotten(restarted):
    restarted.worker()
    restarted.submit()
    restarted.from_frontend(leave(identifier("frontend")))
    restarted.worker()
    restarted.after(4.0)
    assert restarted.starts() == []


def test_attempts_are_not_forgotten_by_a_restart(restarted):
    restarted.submit(accepted=True, attempts=3)
    restarted.worker()
    restarted.frontend("job")
    restarted.after(WINDOW_S + 0.3)
    (outcome,) = restarted.to_frontend(Outcome)
    assert outcome.failure.code is FailureCode.WORKER_LOST
    assert outcome.attempts == 3
    assert restarted.starts() == []


def test_the_third_attempt_that_still_runs_is_adopted(restarted):
    restarted.submit(accepted=True, attempts=3)
    restarted.runs(EARLIER, claim=claim(attempts=3))
    restarted.frontend("job")
    restarted.after(2.0)
    restarted.runs(EARLIER, claim=claim(attempts=3))
    restarted.frontend("job")
    restarted.after(1.5)
    assert isinstance(restarted.job().state, Dispatched)
    restarted.image(EARLIER)
    assert len(restarted.to_frontend(Outcome)) == 1


# --- What runs without a waiter ----------------------------------------------------------------


def keyed(**changes):
    return claim(**{"idempotency_hash": identifier("again"), **changes})


def alive(broker: Driver, duration_s: float, *, claim) -> None:
    """The worker goes on running the earlier execution for so long."""
    for _ in range(round(duration_s)):
        broker.after(1.0)
        broker.worker(running=running(EARLIER, claim=claim))


def test_a_detached_execution_goes_on_though_nobody_claims_it(restarted):
    alive(restarted, 60, claim=keyed(detach=True))
    assert restarted.view().cancel == ()


def test_what_was_detached_before_stays_so_when_it_is_adopted(restarted):
    restarted.worker(running=running(EARLIER, claim=keyed(detach=True)))
    restarted.submit(accepted=True, idempotency=identifier("again"), remaining_ms=500)
    restarted.frontend()
    assert restarted.job() is not None
    alive(restarted, 10, claim=keyed(detach=True))
    assert restarted.job().current_execution == EARLIER


def test_what_was_promised_to_a_repeat_that_has_left_stays_when_it_is_adopted(restarted):
    restarted.worker(running=running(EARLIER, claim=keyed(detach=True, remaining_ms=60_000)))
    restarted.submit(accepted=True, idempotency=identifier("again"), detach=True, remaining_ms=20_000)
    restarted.frontend()
    alive(restarted, 30, claim=keyed(detach=True))
    assert restarted.job().current_execution == EARLIER


def test_a_keyed_execution_goes_on_for_its_grace(restarted):
    alive(restarted, 29, claim=keyed())
    assert restarted.view().cancel == ()
    alive(restarted, 2, claim=keyed())
    assert restarted.view().cancel == (EARLIER,)


def test_a_detached_execution_is_not_ended_for_the_image_of_another_call_with_its_key(restarted):
    other = claim(idempotency_hash=identifier("again"), parameters_digest=identifier("another"))
    restarted.worker("other", held=(held("kept", claim=other, released=True),))
    restarted.runs(EARLIER, claim=keyed(detach=True))
    assert restarted.view().cancel == ()
    restarted.after(WINDOW_S)
    restarted.runs(EARLIER, claim=keyed(detach=True))
    assert restarted.view().cancel == ()


def test_what_a_broker_first_hears_of_late_in_its_window_has_as_long_as_anything(restarted):
    restarted.worker("idle")
    restarted.after(WINDOW_S - 0.2)
    restarted.runs(EARLIER)
    restarted.after(WINDOW_S - 0.1)
    restarted.runs(EARLIER)
    assert restarted.view().cancel == ()
    restarted.after(0.2)
    restarted.runs(EARLIER)
    assert restarted.view().cancel == (EARLIER,)


def test_detached_without_a_key_means_nothing(restarted):
    alive(restarted, 4, claim=claim(detach=True))
    assert restarted.view().cancel == (EARLIER,)


def test_what_goes_on_without_a_job_counts_for_its_key(restarted):
    alive(restarted, 4, claim=keyed(detach=True))
    restarted.worker("idle")
    restarted.submit("new", key="key")
    assert restarted.refusal().reason is RefusalReason.CLIENT_BUSY
    restarted.submit("other", key="other")
    assert restarted.started("idle")


def test_a_repeat_joins_what_goes_on_without_a_job(restarted):
    alive(restarted, 4, claim=keyed(detach=True))
    restarted.submit("repeat", idempotency=identifier("again"))
    assert restarted.starts() == []
    assert restarted.statuses() == {identifier("repeat"): JobState.RUNNING}
    restarted.image(EARLIER)
    (outcome,) = restarted.to_frontend(Outcome)
    assert outcome.job_id == identifier("repeat")


# --- A broker that stood still -----------------------------------------------------------------


def test_a_broker_that_stood_still_holds_it_against_nobody(broker):
    broker.worker()
    broker.frontend()
    execution = broker.run_job()
    broker.after(0.5)
    broker.now += 30.0  # no timer, no message
    broker.worker(running=running(execution))
    assert "broker stood still" in broker.notes()
    assert "frontend lost" not in broker.notes()
    assert broker.job().current_execution == execution
    broker.submit("other", key="other")
    assert broker.refusal().reason is RefusalReason.ALL_WORKERS_BUSY


def test_its_standing_still_makes_no_worker_younger(broker):
    broker.worker(age_ms=60_000)
    broker.after(0.5)
    broker.now += 30.0
    broker.worker(life=2, age_ms=29_000)  # started again while nobody listened
    assert broker.to_worker(Refuse) == []
    (worker,) = broker.core.state.workers
    assert worker.incarnation == identifier("worker 2")
    broker.after(1.0)
    broker.worker(life=2, age_ms=30_000)
    broker.worker(life=1, age_ms=91_500)
    assert broker.to_worker(Refuse)[0].reason is RefusalReason.SUPERSEDED


def test_a_report_that_was_under_way_for_long_makes_no_worker_younger(broker):
    broker.worker(age_ms=100)
    broker.now += 30.0
    broker.worker(age_ms=4_000)  # as it was when the broker fell asleep
    broker.worker(life=2, age_ms=25_000)
    (worker,) = broker.core.state.workers
    assert worker.incarnation == identifier("worker 2")


def test_who_stays_silent_after_that_is_lost_all_the_same(broker):
    broker.worker()
    broker.frontend()
    broker.now += 30.0
    broker.after(8.5)
    assert broker.registered() == set()
    assert not len(broker.core.state.frontends)


def test_views_of_the_window_are_answers_as_any(restarted):
    restarted.frontend("unknown")
    (view,) = restarted.to_frontend(FrontendView)
    assert [status.state for status in view.jobs] == [JobState.UNKNOWN]


# --- The end of the window ---------------------------------------------------------------------


def test_who_waited_is_judged_when_the_accepted_are_under_way(restarted):
    for name in ("a", "b", "c"):
        restarted.worker(name)
    restarted.submit(accepted=True)
    restarted.submit("new", key="new")
    restarted.after(2.0)
    for name in ("a", "b", "c"):
        restarted.worker(name)
    restarted.frontend("job", "new")
    restarted.after(1.0)
    assert {start.claim.job_id for start in restarted.starts()} == {JOB, identifier("new")}


def test_nobody_overtakes_those_who_waited(restarted):
    restarted.worker()
    restarted.submit("early", key="early")
    restarted.after(2.0)
    restarted.worker()
    restarted.frontend("early")
    restarted.after(0.99)
    restarted.now = restarted.core.state.rebuilt_at
    restarted.submit("late", key="late")
    assert restarted.started().claim.job_id == identifier("early")
    assert restarted.refusal().job_id == identifier("late")


def test_an_execution_that_was_adopted_may_be_adopted_again(restarted):
    again = identifier("again")
    theirs = claim(idempotency_hash=again)
    restarted.runs(EARLIER, claim=theirs)
    restarted.submit("repeat", idempotency=again)
    assert restarted.job("repeat").current_execution == EARLIER
    restarted.unreachable()
    restarted.after(2.5)
    restarted.frontend("repeat")
    assert restarted.job("repeat").current_execution is None
    restarted.runs(EARLIER, claim=theirs)
    assert restarted.job("repeat").current_execution == EARLIER
    assert restarted.view().cancel == ()


def test_in_the_window_what_was_adopted_may_have_another_call_whose_frontend_has_not_spoken(restarted):
    again = identifier("again")
    theirs = claim(idempotency_hash=again)
    restarted.runs(EARLIER, claim=theirs)
    restarted.submit(idempotency=again, accepted=True, attempts=1)
    restarted.frontend()
    assert restarted.job() is None
    assert restarted.view().cancel == ()
    restarted.runs(EARLIER, claim=theirs)
    assert restarted.view().cancel == ()
    restarted.submit("repeat", frontend="second", idempotency=again, accepted=True, attempts=1)
    assert restarted.job("repeat").current_execution == EARLIER


def test_after_the_window_nobody_else_is_waited_for(restarted):
    again = identifier("again")
    theirs = claim(idempotency_hash=again)
    restarted.runs(EARLIER, claim=theirs)
    restarted.submit(idempotency=again, accepted=True, attempts=1)
    restarted.frontend()
    restarted.runs(EARLIER, claim=theirs)
    restarted.after(WINDOW_S)
    assert restarted.to_worker(WorkerView)[-1].cancel == (EARLIER,), "before a repeat is told to begin anew"
    restarted.runs(EARLIER, claim=theirs)
    assert restarted.view().cancel == (EARLIER,)


def test_a_repeat_that_waits_for_the_end_takes_over_what_another_call_has_left(restarted):
    again = identifier("again")
    restarted.worker("idle")
    restarted.submit("repeat", frontend="second", idempotency=again)
    restarted.runs(EARLIER, claim=claim(idempotency_hash=again))
    restarted.submit(idempotency=again, accepted=True, attempts=1)
    restarted.frontend()
    assert restarted.job() is None
    restarted.after(WINDOW_S)
    assert restarted.job("repeat").current_execution == EARLIER
    assert restarted.starts() == []
    assert [view.cancel for view in restarted.to_worker(WorkerView) if view.cancel] == []


def test_what_nobody_takes_over_at_the_end_does_not_count_against_other_calls(restarted):
    again = identifier("again")
    restarted.runs(EARLIER, claim=claim(idempotency_hash=again))
    restarted.submit(idempotency=again, accepted=True, attempts=1)
    restarted.frontend()
    restarted.submit("other", frontend="second")
    restarted.after(WINDOW_S - 0.5)
    restarted.runs(EARLIER, claim=claim(idempotency_hash=again))
    restarted.after(0.5)
    assert restarted.to_worker(WorkerView)[-1].cancel == (EARLIER,)
    assert restarted.job("other") is not None, "its key has one job, which is being cancelled"


def test_a_call_with_other_parameters_is_not_measured_by_what_nobody_takes_over(restarted):
    again, others = identifier("again"), identifier("other parameters")
    restarted.submit("other", frontend="second", idempotency=again)
    restarted.runs(EARLIER, claim=claim(idempotency_hash=again, parameters_digest=others))
    restarted.submit(idempotency=again, digest=others, accepted=True, attempts=1)
    restarted.frontend()
    restarted.after(WINDOW_S - 0.5)
    restarted.runs(EARLIER, claim=claim(idempotency_hash=again, parameters_digest=others))
    restarted.after(0.5)
    assert restarted.job("other") is not None


def test_the_first_broker_has_no_window_for_what_it_has_begun_itself():
    first = Driver(rebuild_s=WINDOW_S, is_first=True)
    first.worker()
    execution_id = first.run_job(idempotency=identifier("again"))
    first.frontend()
    assert first.view().cancel == (execution_id,)


def test_a_repeat_does_not_adopt_what_is_being_cancelled(restarted):
    stray = claim(idempotency_hash=identifier("again"))
    restarted.frontend()
    for _ in range(8):
        restarted.runs(EARLIER, claim=stray)
        assert restarted.view().cancel == ()
        restarted.after(3.9)
    restarted.worker("idle")
    restarted.runs(EARLIER, claim=stray)
    assert restarted.view().cancel == (EARLIER,)
    restarted.submit("repeat", idempotency=identifier("again"))
    assert restarted.started("idle").claim.job_id == identifier("repeat")


def test_of_two_images_a_repeat_gets_the_one_that_stays(restarted):
    images = {name: held(identifier(name), claim=keyed()) for name in ("e2", "e1")}
    restarted.worker("a", held=(images["e2"],))
    restarted.worker("b", held=(images["e1"],))
    restarted.submit("repeat", idempotency=identifier("again"))
    assert restarted.view("b").resend == (identifier("e1"),)
    restarted.after(WINDOW_S)
    restarted.worker("a", held=(images["e2"],))
    assert restarted.view("a").release == (identifier("e2"),)


# --- The first broker of a service -------------------------------------------------------------


def test_the_first_broker_serves_at_once():
    first = Driver(rebuild_s=WINDOW_S, is_first=True)
    first.worker()
    first.submit()
    assert first.started().claim.job_id == JOB
    first.frontend("job")
    (view,) = first.to_frontend(FrontendView)
    assert not view.rebuilding
