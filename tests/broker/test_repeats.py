"""Several calls with one idempotency key, calls that leave, frontends that are lost (PROTOCOL.md §6)."""

import pytest
from samples.wire import claim, held, identifier, leave

from broker.events import FrontendUnreachable
from broker.jobs import MAX_WAITERS, Delivering
from proto.failures import FailureCode, RefusalReason
from proto.messages import JobState, Outcome, WorkerView

JOB, REPEAT = identifier("job"), identifier("repeat")
AGAIN = identifier("again")
GRACE_S = 30.0


def run_keyed(broker, **changes):
    """A job with an idempotency key that runs; gives its execution."""
    broker.worker()
    broker.submit(idempotency=AGAIN, **changes)
    execution = broker.started().execution_id
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN, detach=changes.get("detach", False)))
    return execution


def keyed_image(execution, **changes):
    return held(execution, claim=claim(idempotency_hash=AGAIN), **changes)


def finish(broker, execution):
    """The image is drawn, delivered, and its call has ended."""
    broker.image(execution)
    broker.worker(held=(keyed_image(execution),))
    broker.frontend()


def go_on(broker, execution, duration_s, *, detach=False):
    for _ in range(round(duration_s)):
        broker.after(1.0)
        broker.runs(execution, claim=claim(idempotency_hash=AGAIN, detach=detach))


# --- Repeats while it runs ---------------------------------------------------------------------


def test_a_repeat_joins_the_running_job_and_both_get_its_image(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    assert broker.starts() == []
    assert broker.statuses("second") == {REPEAT: JobState.RUNNING}
    broker.image(execution)
    (first,), (second,) = broker.to_frontend(Outcome), broker.to_frontend(Outcome, "second")
    assert (first.job_id, second.job_id) == (JOB, REPEAT)
    assert first.execution_id == second.execution_id == execution
    assert broker.counters.completed == 1


def test_a_repeat_through_the_same_frontend_is_a_waiter_of_its_own(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", idempotency=AGAIN)
    broker.frontend("repeat")
    assert broker.job() is not None, "the first has left, the second waits"
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome)] == [REPEAT]


def test_the_job_ends_when_the_last_of_its_waiters_leaves(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    broker.frontend()
    assert broker.job() is not None
    broker.frontend(frontend="second")
    assert broker.job() is None
    assert broker.view().cancel == (execution,)


def test_a_repeat_that_waits_for_longer_gives_the_worker_more_time(broker):
    execution = run_keyed(broker, remaining_ms=10_000)
    broker.submit("repeat", idempotency=AGAIN, remaining_ms=60_000)
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN, remaining_ms=9_900))
    start = broker.started()
    assert (start.execution_id, start.claim.remaining_ms) == (execution, 60_000)
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN, remaining_ms=59_000))
    assert broker.starts() == []


def test_a_repeat_with_another_image_in_mind_is_refused(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", idempotency=AGAIN, digest=identifier("another"))
    assert broker.refusal().reason is RefusalReason.IDEMPOTENCY_MISMATCH
    assert broker.refusal().retry_after_ms is None
    assert broker.job().current_execution == execution


def test_the_same_word_of_another_api_key_is_another_key(broker):
    run_keyed(broker)
    broker.worker("idle")
    broker.submit("repeat", idempotency=AGAIN, key="other")
    assert broker.started("idle").claim.job_id == REPEAT


def test_a_repeat_is_no_second_job_of_its_api_key(broker):
    run_keyed(broker)
    broker.worker("idle")
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.starts() == []
    broker.submit("other")
    assert broker.refusal().reason is RefusalReason.CLIENT_BUSY


def test_after_a_failure_a_repeat_is_a_new_job(broker):
    execution = run_keyed(broker)
    broker.failure(execution, FailureCode.ENGINE_ERROR)
    broker.worker()
    broker.submit("repeat", idempotency=AGAIN)
    start = broker.started()
    assert start.claim.job_id == REPEAT
    assert start.claim.attempts == 1


def test_a_repeat_that_comes_while_the_first_is_being_stopped_is_drawn_all_the_same(broker):
    execution = run_keyed(broker)
    broker.frontend()
    assert broker.view().cancel == (execution,)
    broker.worker("idle")
    broker.submit("repeat", idempotency=AGAIN)
    start = broker.started("idle")
    assert (start.claim.job_id, start.claim.attempts) == (REPEAT, 1)
    broker.failure(execution, FailureCode.CANCELLED)
    assert broker.to_frontend(Outcome) == []


def test_a_repeat_that_comes_before_a_report_does_not_join_what_has_ended(broker):
    execution = run_keyed(broker)
    broker.failure(execution, FailureCode.ENGINE_ERROR)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.started().execution_id != execution


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_new_job_inherits_nothing_from_the_failure_of_an_earlier_one(broker, attempts):
    execution = run_keyed(broker)
    broker.failure(execution, FailureCode.ENGINE_ERROR)
    failed = claim(idempotency_hash=AGAIN, crashes=2, attempts=attempts)
    broker.worker(held=(held(execution, claim=failed, failure=FailureCode.ENGINE_ERROR),))
    broker.submit("repeat", idempotency=AGAIN)
    start = broker.started()
    assert (start.claim.attempts, start.claim.crashes) == (1, 0)


def test_a_repeat_with_less_time_shortens_nothing(broker):
    execution = run_keyed(broker, detach=True)
    broker.frontend()
    broker.submit("repeat", idempotency=AGAIN, remaining_ms=1_000)
    broker.submit("repeat", idempotency=AGAIN, remaining_ms=1_000)
    broker.frontend()
    go_on(broker, execution, 5, detach=True)
    assert broker.job().current_execution == execution


# --- Repeats of what is finished ---------------------------------------------------------------


def test_a_delivered_image_is_kept_for_repeats(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    assert broker.job() is None
    broker.worker(held=(keyed_image(execution),))
    assert (broker.view().keep, broker.view().release) == ((execution,), ())
    broker.worker(held=(keyed_image(execution, released=True),))
    assert (broker.view().keep, broker.view().release) == ((), ())


def test_a_delivered_image_without_a_key_is_released(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(execution)
    broker.worker(held=(held(execution),))
    broker.frontend()
    assert (broker.view().keep, broker.view().release) == ((), (execution,))


def test_a_repeat_gets_the_kept_image_though_every_worker_is_busy(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    busy = broker.run_job("other", key="other")
    broker.worker(running=None, held=(keyed_image(execution, released=True),))
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    assert broker.view().resend == (execution,)
    assert broker.statuses("second") == {REPEAT: JobState.ENDED}
    broker.image(execution)
    (outcome,) = broker.to_frontend(Outcome, "second")
    assert outcome.job_id == REPEAT
    assert broker.counters.completed == 1, "an image that is given again is not one more"
    assert busy != execution


def test_a_repeat_finds_the_image_though_no_report_has_listed_it_yet(broker):
    execution = run_keyed(broker)
    broker.image(execution)
    broker.frontend()
    broker.worker("idle")
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.starts() == []
    assert broker.to_worker(WorkerView)[-1].resend == (execution,)


def test_a_repeat_with_another_image_in_mind_is_refused_while_the_image_is_kept(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    broker.submit("repeat", idempotency=AGAIN, digest=identifier("another"))
    assert broker.refusal().reason is RefusalReason.IDEMPOTENCY_MISMATCH


def test_a_kept_image_that_gave_way_is_drawn_again(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    broker.submit("repeat", idempotency=AGAIN)
    assert isinstance(broker.job("repeat").state, Delivering)
    broker.worker()
    broker.after(1.0)
    broker.worker()
    broker.after(0.6)
    broker.frontend("repeat")
    start = broker.started()
    assert start.claim.job_id == REPEAT


def test_a_repeat_that_joins_while_the_image_is_on_its_way_gets_it_too(broker):
    execution = run_keyed(broker)
    broker.image(execution)
    broker.worker(held=(keyed_image(execution),))
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    assert broker.view().resend == (execution,)
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome, "second")] == [REPEAT]


def test_of_two_images_of_one_key_one_is_kept(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    late = identifier("late")
    broker.worker("late", held=(keyed_image(late),))
    assert broker.view("late").release == (late,), "repeats get what the first call got"


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_of_two_images_that_nobody_was_given_one_is_kept(broker, order):
    for name in order * 2:
        broker.worker(name, held=(keyed_image(identifier(name)),))
    kept = broker.view(order[1]).keep
    broker.worker(order[0], held=(keyed_image(identifier(order[0])),))
    assert sorted(kept + broker.view(order[0]).keep) == [identifier("a")]


# --- Detached ----------------------------------------------------------------------------------


def test_a_detached_job_goes_on_without_its_waiter(broker):
    execution = run_keyed(broker, detach=True)
    broker.frontend()
    assert broker.job() is not None
    go_on(broker, execution, 40, detach=True)
    assert broker.view().cancel == ()
    broker.image(execution)
    assert broker.job() is None
    assert broker.counters.completed == 1
    broker.worker(held=(keyed_image(execution),))
    assert broker.view().keep == (execution,)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.view().resend == (execution,)


def test_a_detached_job_runs_again_though_nobody_waits(broker):
    execution = run_keyed(broker, detach=True)
    broker.worker("other")
    broker.frontend()
    broker.failure(execution, FailureCode.ENGINE_CRASHED)
    assert broker.started("other").claim.attempts == 2


def test_what_another_broker_has_detached_goes_on_here_without_its_waiter(broker):
    """That one may be gone when the call leaves."""
    execution = run_keyed(broker)
    go_on(broker, execution, 1, detach=True)
    broker.frontend()
    assert broker.job() is not None
    go_on(broker, execution, 40, detach=True)
    assert broker.view().cancel == ()


def test_what_is_detached_for_another_idempotency_key_ends_with_its_waiter(broker):
    execution = run_keyed(broker)
    broker.after(1.0)
    broker.runs(execution, claim=claim(idempotency_hash=identifier("another"), detach=True))
    broker.frontend()
    assert broker.job() is None
    assert broker.view().cancel == (execution,)


def test_a_detached_job_ends_with_its_deadline(broker):
    execution = run_keyed(broker, detach=True, remaining_ms=10_000)
    broker.frontend()
    go_on(broker, execution, 12, detach=True)
    assert broker.job() is None


def test_a_repeat_may_detach_the_job_that_it_joins_and_the_worker_is_told(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", idempotency=AGAIN, detach=True)
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN))
    start = broker.started()
    assert (start.execution_id, start.claim.detach) == (execution, True)
    broker.frontend()
    assert broker.job() is not None


def test_detaching_without_a_key_means_nothing(broker):
    broker.worker()
    broker.run_job(detach=True)
    broker.frontend()
    assert broker.job() is None


# --- Lost frontends ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["leaves", "is silent", "is unreachable"])
def test_a_keyed_job_survives_its_frontend_for_a_while(broker, how):
    execution = run_keyed(broker)
    broker.frontend("job")
    match how:
        case "leaves":
            broker.from_frontend(leave(identifier("frontend")))
        case "is silent":
            go_on(broker, execution, 9)
        case "is unreachable":
            broker.tell(FrontendUnreachable(route=b"to frontend"))
            go_on(broker, execution, 3)
    assert not len(broker.core.state.frontends)
    go_on(broker, execution, GRACE_S - 3)
    assert broker.job().current_execution == execution
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    go_on(broker, execution, 3)
    assert broker.statuses("second") == {}
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome, "second")] == [REPEAT]


def test_then_it_is_cancelled(broker):
    execution = run_keyed(broker)
    broker.from_frontend(leave(identifier("frontend")))
    go_on(broker, execution, GRACE_S + 1)
    assert broker.job() is None
    assert broker.counters.cancelled == 1
    assert broker.view().cancel == (execution,)


def test_a_job_without_a_key_ends_with_its_frontend(broker):
    broker.worker()
    execution = broker.run_job()
    broker.from_frontend(leave(identifier("frontend")))
    assert broker.job() is None
    assert broker.view().cancel == (execution,)


def test_what_is_finished_without_a_waiter_is_kept(broker):
    execution = run_keyed(broker)
    broker.from_frontend(leave(identifier("frontend")))
    broker.image(execution)
    assert broker.job() is None
    broker.worker(held=(keyed_image(execution),))
    assert broker.view().keep == (execution,)


def lose_frontend(broker, execution, *, detach=False):
    broker.tell(FrontendUnreachable(route=b"to frontend"))
    go_on(broker, execution, 3, detach=detach)
    assert identifier("frontend") not in broker.core.state.frontends.known


def test_a_frontend_that_comes_back_without_the_call_ends_it(broker):
    execution = run_keyed(broker)
    lose_frontend(broker, execution)
    broker.frontend()
    assert broker.job() is None
    assert broker.view().cancel == (execution,)
    assert broker.counters.cancelled == 1


def test_one_that_comes_back_with_the_call_gets_its_image(broker):
    execution = run_keyed(broker)
    lose_frontend(broker, execution)
    broker.frontend("job")
    assert broker.statuses() == {JOB: JobState.UNKNOWN}
    broker.submit(idempotency=AGAIN, accepted=True, attempts=1)
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome)] == [JOB]


def test_a_report_from_before_the_call_ends_nothing(broker):
    execution = run_keyed(broker, seq=1000)
    lose_frontend(broker, execution)
    broker.frontend(seq=999)
    assert broker.job().current_execution == execution
    broker.frontend(seq=1001)
    assert broker.job() is None


def test_what_is_detached_goes_on_though_its_frontend_comes_back_without_the_call(broker):
    execution = run_keyed(broker, detach=True)
    lose_frontend(broker, execution, detach=True)
    broker.frontend()
    assert broker.job().current_execution == execution


def test_a_repeat_waits_on_when_the_first_call_has_ended_unseen(broker):
    execution = run_keyed(broker)
    lose_frontend(broker, execution)
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    broker.frontend()
    assert broker.statuses("second") == {}
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome, "second")] == [REPEAT]


def test_of_two_lost_frontends_the_one_that_stays_away_keeps_the_grace(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", frontend="second", idempotency=AGAIN)
    broker.from_frontend(leave(identifier("second")))
    lose_frontend(broker, execution)
    broker.frontend()
    assert broker.job().current_execution == execution
    go_on(broker, execution, GRACE_S - 4)
    assert broker.job() is not None
    go_on(broker, execution, 5)
    assert broker.job() is None


def test_two_calls_of_a_frontend_that_is_back_end_one_by_one(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", idempotency=AGAIN)
    lose_frontend(broker, execution)
    broker.frontend("repeat")
    assert broker.job().current_execution == execution
    broker.frontend()
    assert broker.job() is None


# --- Poison ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", [FailureCode.ENGINE_CRASHED, FailureCode.ENGINE_HUNG, FailureCode.DEVICE_POISONED]
)
def test_a_job_that_ended_two_engine_processes_is_poison(broker, code):
    broker.worker()
    broker.worker("other")
    broker.failure(broker.run_job(), code, crashes=1)
    second = broker.started("other").execution_id
    broker.failure(second, code, worker="other", attempts=2, crashes=2)
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure.code is FailureCode.POISON_JOB
    assert outcome.attempts == 2
    assert "as told" in outcome.failure.detail


def test_a_lost_worker_is_no_crash(broker):
    for name in ("worker", "other", "third"):
        broker.worker(name)
    broker.run_job()
    broker.leaves("worker")
    broker.leaves("other")
    assert broker.started("third").claim.crashes == 0


# --- Many of them ------------------------------------------------------------------------------


def test_many_repeats_cost_one_transfer_and_one_image_each(broker):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    resent = 0
    for n in range(20):
        broker.submit(f"repeat {n}", idempotency=AGAIN)
        resent += len(broker.to_worker(WorkerView))
    assert resent == 1
    broker.image(execution)
    assert len({outcome.job_id for outcome in broker.to_frontend(Outcome)}) == 20
    broker.image(execution)
    assert broker.to_frontend(Outcome) == []


def test_a_call_that_did_not_get_its_image_gets_it_alone(broker):
    execution = run_keyed(broker)
    broker.submit("repeat", idempotency=AGAIN)
    broker.image(execution)
    broker.worker(held=(keyed_image(execution),))
    broker.after(1.6)
    broker.worker(held=(keyed_image(execution),))
    broker.frontend("repeat")
    assert broker.to_worker(WorkerView)[-1].resend == (execution,)
    broker.image(execution)
    assert [outcome.job_id for outcome in broker.to_frontend(Outcome)] == [REPEAT]


def test_no_more_than_so_many_calls_wait_for_one_job(broker):
    run_keyed(broker)
    for n in range(MAX_WAITERS - 1):
        broker.submit(f"repeat {n}", idempotency=AGAIN)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.refusal().reason is RefusalReason.CLIENT_BUSY
    assert broker.counters.shed["waiters"] == 1
    broker.submit("repeat 0", idempotency=AGAIN)
    assert broker.statuses() == {identifier("repeat 0"): JobState.RUNNING}, "one that waits already"


def test_kept_images_do_not_get_around_the_limit_of_jobs(broker, monkeypatch):
    execution = run_keyed(broker)
    finish(broker, execution)
    broker.worker(held=(keyed_image(execution, released=True),))
    monkeypatch.setattr("broker.submissions.MAX_JOBS", 0)
    broker.submit("repeat", idempotency=AGAIN)
    assert broker.refusal().reason is RefusalReason.BROKER_FULL


# --- What is being stopped ---------------------------------------------------------------------


def test_another_image_under_the_key_of_what_is_being_stopped_is_no_mismatch(broker):
    run_keyed(broker)
    broker.frontend()
    broker.worker("idle")
    broker.submit("changed", idempotency=AGAIN, digest=identifier("another"))
    assert broker.started("idle").claim.job_id == identifier("changed")


def test_a_claim_is_renewed_once_for_each_report(broker):
    execution = run_keyed(broker, remaining_ms=10_000)
    broker.runs(execution, claim=claim(idempotency_hash=AGAIN, remaining_ms=9_500))
    for n in range(5):
        broker.submit(f"repeat {n}", idempotency=AGAIN, remaining_ms=60_000 + n)
        assert len(broker.starts()) == (1 if n == 0 else 0)
    short = claim(idempotency_hash=AGAIN, remaining_ms=9_000)
    broker.runs(execution, claim=short)
    assert broker.started().execution_id == execution
    broker.runs(execution, claim=short, stopping=True)
    assert broker.starts() == []


def test_a_death_on_a_job_that_runs_elsewhere_by_now_counts(broker):
    execution = run_keyed(broker)
    broker.worker("other")
    broker.unreachable()
    for _ in range(3):
        broker.after(0.9)
        broker.worker("other")
        broker.frontend("job")
    assert broker.job().current_execution != execution
    broker.failure(execution, FailureCode.ENGINE_CRASHED, crashes=1)
    assert broker.job().crashes == 1


def test_a_job_ends_once(broker):
    broker.worker()
    broker.image(broker.run_job())
    broker.leaves("worker")
    for _ in range(6):
        broker.after(1.0)
        broker.frontend("job")
    assert (broker.counters.completed, broker.counters.failed) == (1, 0)
