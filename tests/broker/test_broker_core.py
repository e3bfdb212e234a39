"""A job's life at the broker, rule by rule (PROTOCOL.md §5): events in, actions out."""

import pytest
from samples.wire import EPOCH, PARAMETERS, claim, held, identifier, leave, running

from broker.actions import Emptied, SendToFrontend, SendToWorker
from broker.events import DrainRequested, FromWorker, FrontendUnreachable
from broker.jobs import MAX_ATTEMPTS, Delivering, Dispatched, Failed, Queued, Returned
from broker.worker_side import STOPPED
from proto.failures import RETRYABLE_FAILURES, FailureCode, RefusalReason
from proto.messages import (
    FrontendView,
    JobFailed,
    JobState,
    JobStatus,
    Outcome,
    Refuse,
    Start,
    WorkerPhase,
    WorkerView,
)

JOB = identifier("job")
EXECUTION = identifier("execution 1")


def refuse_start(broker, execution, reason=RefusalReason.WORKER_NOT_READY, worker="worker"):
    refuse = Refuse(reason=reason, job_id=JOB, execution_id=execution)
    return broker.tell(FromWorker(route=b"to " + worker.encode(), message=refuse))


# --- SUBMIT and START --------------------------------------------------------------------------


def test_a_job_for_an_idle_worker_is_started_and_its_frontend_told(broker):
    broker.worker()
    broker.submit()
    assert broker.sent() == [
        SendToWorker(
            route=b"to worker",
            message=Start(
                epoch=EPOCH,
                incarnation=identifier("worker 1"),
                execution_id=EXECUTION,
                claim=claim(attempts=1),
                parameters=PARAMETERS,
                body=b"a cat",
            ),
        ),
        SendToFrontend(
            route=b"to frontend",
            message=FrontendView(
                broker_id="broker",
                epoch=EPOCH,
                echo=1,
                heartbeat_interval_ms=1000,
                ready_workers=1,
                jobs=(JobStatus(job_id=JOB, state=JobState.RUNNING, execution_id=EXECUTION, attempts=1),),
            ),
        ),
    ]


def test_the_time_that_the_job_waited_is_not_given_to_the_worker(queueing_broker):
    broker = queueing_broker
    broker.worker()
    first = broker.run_job("first", key="other")
    broker.submit(remaining_ms=10_000)
    broker.after(4.0)
    broker.image(first, "first")
    assert broker.started().claim.remaining_ms == 6000


def test_one_worker_runs_one_job(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.submit("first", key="1")
    broker.submit("second", key="2")
    assert broker.starts() == []
    assert broker.statuses() == {identifier("second"): JobState.QUEUED}


def test_the_worker_that_idled_longest_is_next(broker):
    for name in ("new", "old", "newest"):
        broker.worker(name)
    broker.submit("a", key="1")
    first = broker.started("new")
    broker.after(0.1)
    broker.image(first.execution_id, "a", "new")
    broker.submit("b", key="2")
    assert broker.started("old")
    broker.submit("c", key="3")
    assert broker.started("newest")
    broker.submit("d", key="4")
    assert broker.started("new")


def test_a_submit_that_comes_again_changes_nothing_and_is_answered(broker):
    broker.worker()
    broker.submit()
    broker.submit()
    assert broker.starts() == []
    assert broker.statuses() == {JOB: JobState.RUNNING}
    assert broker.job().current_execution == EXECUTION


def test_a_submit_that_comes_again_brings_its_waiter_and_its_remaining_time(broker):
    broker.worker()
    broker.submit(remaining_ms=60_000)
    broker.submit(frontend="second", remaining_ms=5_000)
    assert broker.job().waiters[JOB].frontend == identifier("second")
    assert broker.job().deadline == broker.now + 5.0
    broker.frontend()
    assert broker.job() is not None, "its former frontend does not wait for it any more"
    broker.image(EXECUTION)
    assert len(broker.to_frontend(Outcome, "second")) == 1


def test_a_submit_that_a_report_has_overtaken_is_ignored(broker):
    broker.worker()
    broker.frontend(seq=5)
    broker.submit(seq=4)
    assert broker.sent() == []
    assert broker.job() is None


def test_a_start_that_no_later_report_knows_is_sent_again_the_same(broker):
    broker.worker()
    broker.submit()
    first = broker.started()
    broker.worker()
    assert broker.starts() == [], "this report may have crossed the START"
    broker.after(1.0)
    broker.worker()
    broker.after(0.5)
    broker.worker()
    again = broker.started()
    assert again.execution_id == first.execution_id
    assert again.claim == claim(attempts=1, remaining_ms=58_500)
    broker.after(1.0)
    broker.worker()
    assert broker.starts() == []
    assert broker.job().attempts == 1


def test_a_start_whose_job_is_gone_is_not_sent_again(broker):
    broker.worker()
    broker.submit()
    broker.frontend()
    broker.after(1.6)
    broker.worker()
    assert broker.starts() == []
    broker.submit("next")
    assert broker.started()


# --- OUTCOME -----------------------------------------------------------------------------------


def test_an_image_is_passed_on_as_it_is_and_its_worker_is_free(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(execution, body=b"these pixels")
    (outcome,) = broker.to_frontend(Outcome)
    assert (outcome.body, outcome.execution_id, outcome.worker_id) == (b"these pixels", execution, "worker")
    broker.submit("next")
    assert broker.started().claim.job_id == identifier("next")


def test_the_key_is_free_once_its_image_was_passed_on(broker):
    broker.worker()
    broker.image(broker.run_job())
    broker.submit("second")
    assert broker.started()


def test_an_outcome_before_any_report_of_its_execution_counts(broker):
    broker.worker()
    broker.submit()
    broker.image(EXECUTION)
    assert len(broker.to_frontend(Outcome)) == 1


def test_a_missed_outcome_is_asked_for_again(broker):
    broker.worker()
    execution = broker.run_job()
    broker.worker(held=(held(execution),))
    assert broker.view().resend == (execution,)
    assert broker.view().release == ()
    broker.image(execution)
    assert len(broker.to_frontend(Outcome)) == 1
    broker.worker(held=(held(execution),))
    assert broker.view().resend == ()
    assert broker.view().release == ()


def test_a_missed_outcome_does_not_keep_the_worker(broker):
    broker.worker()
    execution = broker.run_job()
    broker.worker(held=(held(execution),))
    broker.submit("second", key="other")
    second = broker.started()
    broker.image(execution)
    broker.image(second.execution_id, "second")
    assert len(broker.to_frontend(Outcome)) == 1


def test_a_missed_outcome_that_the_worker_has_dropped_is_a_lost_execution(broker):
    broker.worker()
    execution = broker.run_job()
    broker.worker(held=(held(execution),))
    broker.worker()
    assert broker.started().claim.attempts == 2


def test_a_lost_outcome_is_a_lost_execution(broker):
    broker.worker()
    broker.run_job()
    broker.worker()
    assert broker.started().claim.attempts == 2


def test_a_delivered_outcome_is_released_when_the_frontend_leaves_it_out(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(execution)
    broker.worker(held=(held(execution),))
    assert broker.view().release == ()
    broker.frontend()
    assert broker.view().release == (execution,)
    assert broker.job() is None


def test_an_image_that_its_frontend_misses_is_asked_for_and_passed_on_again(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(execution)
    broker.worker(held=(held(execution),))
    broker.after(1.0)
    broker.frontend("job")
    assert broker.to_worker(WorkerView) == []
    assert broker.statuses() == {JOB: JobState.ENDED}
    broker.after(0.5)
    broker.frontend("job")
    assert broker.view().resend == (execution,)
    broker.frontend("job")
    assert broker.to_worker(WorkerView) == [], "it was just asked for"
    broker.image(execution)
    assert len(broker.to_frontend(Outcome)) == 1
    assert broker.counters.completed == 1


@pytest.mark.parametrize("worker_is", ["forgetful", "gone"])
def test_an_image_that_is_lost_on_its_way_is_made_again(broker, worker_is):
    broker.worker()
    broker.worker("other")
    broker.image(broker.run_job())
    if worker_is == "gone":
        broker.leaves("worker")
    else:
        broker.worker()  # It does not list the image any more.
    broker.after(1.4)
    broker.worker("other")
    broker.after(0.1)
    broker.frontend("job")
    assert broker.started("other").claim.attempts == 2


def test_a_failure_that_its_frontend_misses_is_said_again(broker):
    broker.worker()
    execution = broker.run_job()
    broker.failure(execution, FailureCode.ENGINE_ERROR)
    (first,) = broker.to_frontend(Outcome)
    broker.after(1.5)
    broker.frontend("job")
    assert broker.to_frontend(Outcome) == [first]
    broker.frontend("job")
    assert broker.to_frontend(Outcome) == []
    assert broker.counters.failed == 1


@pytest.mark.parametrize("code", sorted(set(FailureCode) - RETRYABLE_FAILURES - STOPPED))
def test_a_failure_of_the_job_itself_is_final(broker, code):
    broker.worker()
    broker.failure(broker.run_job(), code)
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure == JobFailed(code=code, detail="as told")
    assert outcome.worker_id == "worker"
    assert isinstance(broker.job().state, Failed)


@pytest.mark.parametrize("code", sorted(STOPPED))
def test_what_was_stopped_though_somebody_waits_for_it_runs_again(broker, code):
    broker.worker()
    broker.worker("other")
    broker.failure(broker.run_job(), code)
    assert broker.to_frontend(Outcome) == []
    assert broker.started("other").claim.attempts == 2


@pytest.mark.parametrize("code", sorted(STOPPED))
def test_what_was_stopped_at_the_end_of_its_time_does_not(broker, code):
    broker.worker()
    execution = broker.run_job(remaining_ms=5_000)
    broker.after(4.5)
    broker.failure(execution, code)
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure.code is FailureCode.DEADLINE_EXCEEDED


# --- Attempts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(RETRYABLE_FAILURES))
def test_a_failure_of_the_place_is_tried_again_elsewhere(broker, code):
    broker.worker()
    execution = broker.run_job()
    broker.worker("other")
    broker.failure(execution, code, crashes=1)
    again = broker.started("other")
    assert (again.claim.attempts, again.claim.crashes) == (2, 1)
    assert again.execution_id != execution
    assert broker.to_frontend(Outcome) == []


def test_after_three_attempts_the_broker_itself_says_the_last_failure(broker):
    broker.worker()
    broker.submit()
    for attempt in range(1, 4):
        start = broker.started()
        assert start.claim.attempts == attempt
        broker.runs(start.execution_id)
        broker.failure(start.execution_id, FailureCode.OUT_OF_MEMORY, attempts=attempt)
        assert (broker.to_frontend(Outcome) == []) == (attempt < 3)
        if attempt < 3:
            assert broker.starts() == [], "it replaces its engine"
            broker.worker()
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure == JobFailed(code=FailureCode.OUT_OF_MEMORY, detail="as told")
    assert (outcome.worker_id, outcome.incarnation, outcome.attempts) == ("broker", EPOCH, 3)
    assert broker.starts() == []
    assert broker.counters.failed == 1


def test_a_job_that_came_back_waits_its_time_and_then_fails(broker):
    broker.worker()
    broker.run_job()
    broker.leaves("worker")
    assert broker.statuses() == {}
    assert isinstance(broker.job().state, Returned)
    broker.after(2.9)
    assert broker.to_frontend(Outcome) == []
    broker.after(0.4)
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure.code is FailureCode.WORKER_LOST
    assert "worker" in outcome.failure.detail
    assert outcome.attempts == 1


def test_a_job_that_came_back_goes_before_all_others(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("first", key="1")
    broker.submit("second", key="2")
    broker.submit("third", key="3")
    broker.leaves("worker")
    broker.worker("other")
    assert broker.started("other").claim.job_id == identifier("first")


def test_while_a_returned_job_waits_no_new_one_is_admitted(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("first", key="1")
    broker.worker("busy")
    broker.submit("second", key="2")
    broker.leaves("worker")
    broker.submit("third", key="3")
    assert broker.refusal().reason is RefusalReason.ALL_WORKERS_BUSY
    assert broker.refusal().retry_after_ms


def test_a_refused_start_costs_no_attempt_and_goes_elsewhere(broker):
    broker.worker()
    broker.worker("other")
    broker.submit()
    first = broker.started()
    refuse_start(broker, first.execution_id)
    again = broker.started("other")
    assert again.claim.attempts == 1
    assert again.execution_id != first.execution_id


def test_a_worker_that_refused_gets_nothing_until_it_reports(broker):
    broker.worker()
    broker.submit()
    refuse_start(broker, broker.started().execution_id)
    assert broker.starts() == []
    broker.after(0.3)
    assert broker.starts() == []
    broker.worker(phase=WorkerPhase.LOADING)
    assert broker.starts() == []
    broker.worker()
    assert broker.started().claim.attempts == 1


def test_a_start_refused_for_ever_ends_by_the_deadline(broker):
    broker.worker()
    broker.submit(remaining_ms=5_000)
    started = 0
    while broker.job() is not None:
        for start in broker.starts():
            started += 1
            refuse_start(broker, start.execution_id)
        broker.after(0.5)
        broker.worker()
        starts = broker.actions
        broker.frontend("job")
        broker.actions = starts
        assert broker.now < 120.0
    assert 1 < started < 20


def test_the_outcome_of_a_former_execution_is_nobodys(broker):
    broker.worker()
    former = broker.run_job()
    broker.worker("other")
    broker.after(1.0)
    broker.worker("other")
    broker.worker(life=2)
    present = broker.job().current_execution
    assert present not in {None, former}
    broker.image(former)
    assert broker.to_frontend(Outcome) == []
    assert broker.counters.shed["fenced_images"] == 1


def test_an_execution_that_went_on_while_its_worker_was_lost_is_cancelled(broker):
    broker.worker()
    former = broker.run_job()
    for _ in range(9):
        broker.after(1.0)
        broker.worker("other")
        broker.frontend("job")
    assert broker.job().current_execution is not None
    broker.runs(former)
    assert broker.view().cancel == (former,)


# --- Frontends ---------------------------------------------------------------------------------


def test_a_report_is_answered_with_every_job_of_it(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("runs", key="1")
    broker.submit("waits", key="2")
    broker.frontend("runs", "waits", "nobody knows", seq=77)
    (view,) = broker.to_frontend(FrontendView)
    assert view.echo == 77
    assert broker.statuses() == {
        identifier("runs"): JobState.RUNNING,
        identifier("waits"): JobState.QUEUED,
        identifier("nobody knows"): JobState.UNKNOWN,
    }


def test_an_overtaken_report_is_ignored(broker):
    broker.worker()
    broker.run_job()
    broker.frontend("job", seq=9)
    broker.frontend(seq=8)
    assert broker.sent() == []
    assert broker.job() is not None


def test_a_report_says_nothing_of_a_job_that_was_submitted_after_it(broker):
    broker.worker()
    broker.submit(seq=6)
    broker.frontend(seq=5)
    assert broker.job() is not None
    broker.frontend(seq=7)
    assert broker.job() is None


def test_a_job_that_is_left_out_while_it_runs_is_cancelled(broker):
    broker.worker()
    execution = broker.run_job()
    broker.frontend()
    assert broker.job() is None
    assert broker.view().cancel == (execution,)
    assert broker.counters.cancelled == 1
    broker.failure(execution, FailureCode.CANCELLED)
    assert broker.to_frontend(Outcome) == []
    broker.submit("next")
    assert broker.started()


def test_a_job_that_is_left_out_while_it_waits_is_forgotten(queueing_broker):
    broker = queueing_broker
    broker.worker()
    broker.run_job("runs", key="1")
    broker.submit("waits", key="2")
    broker.frontend("runs")
    assert broker.job("waits") is None
    assert broker.to_worker(WorkerView) == []


def test_a_cancel_frees_the_key_at_once_and_the_worker_when_it_reports(broker):
    broker.worker()
    broker.run_job()
    broker.frontend()
    broker.submit("second")
    assert broker.statuses() == {identifier("second"): JobState.QUEUED}, "it will be idle in a moment"
    broker.submit("third", key="other")
    assert broker.refusal().reason is RefusalReason.ALL_WORKERS_BUSY
    broker.worker()
    assert broker.started().claim.job_id == identifier("second")


def test_a_frontend_speaks_of_its_own_jobs_only(broker):
    broker.worker()
    broker.run_job()
    broker.frontend(frontend="second")
    assert broker.job() is not None


def test_a_silent_frontend_is_lost_and_its_jobs_with_it(broker):
    broker.worker()
    execution = broker.run_job()
    for _ in range(7):
        broker.after(1.0)
        broker.runs(execution)
    assert broker.job() is not None
    broker.after(1.3)
    assert broker.job() is None
    assert broker.counters.cancelled == 1
    assert len(broker.core.state.frontends) == 0
    broker.runs(execution)
    assert broker.view().cancel == (execution,)


def test_a_frontend_that_leaves_gives_up_its_jobs(broker):
    broker.worker()
    execution = broker.run_job()
    broker.from_frontend(leave(identifier("frontend")))
    assert broker.job() is None
    assert broker.view().cancel == (execution,)
    broker.from_frontend(leave(identifier("frontend")))
    assert broker.sent() == []


def test_an_unreachable_frontend_is_left_to_its_own_reports(broker):
    broker.worker()
    broker.run_job()
    broker.tell(FrontendUnreachable(route=b"to frontend"))
    assert broker.sent() == []
    assert broker.job() is not None


# --- Deadlines, accepted jobs, drain -----------------------------------------------------------


def test_a_job_past_its_deadline_is_forgotten_if_its_frontend_does_not_say_so(broker):
    broker.worker()
    execution = broker.run_job(remaining_ms=3_000)
    broker.after(3.5)
    assert broker.job() is not None
    broker.after(0.8)
    assert broker.job() is None
    broker.runs(execution)
    assert broker.view().cancel == (execution,)


def test_an_accepted_job_passes_the_admission_and_goes_first(broker):
    broker.worker()
    broker.run_job("first", key="1")
    broker.submit("second", key="1", accepted=True, attempts=1)
    assert broker.to_frontend(Refuse) == []
    assert broker.statuses() == {identifier("second"): JobState.QUEUED}
    assert isinstance(broker.job("second").state, Returned)


def test_an_accepted_job_is_taken_before_there_is_a_worker(broker):
    broker.submit(accepted=True, attempts=1, crashes=1)
    assert broker.statuses() == {JOB: JobState.QUEUED}
    broker.worker()
    start = broker.started()
    assert (start.claim.attempts, start.claim.crashes) == (2, 1)


@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("attempts", [3, 1000])
def test_a_job_that_had_its_attempts_gets_no_more(broker, accepted, attempts):
    broker.worker()
    broker.submit(accepted=accepted, attempts=attempts)
    assert broker.starts() == []
    (outcome,) = broker.to_frontend(Outcome)
    assert outcome.failure.code is FailureCode.WORKER_LOST
    assert outcome.attempts == MAX_ATTEMPTS


def test_a_draining_broker_says_so_and_admits_nothing_new(broker):
    broker.worker()
    execution = broker.run_job()
    broker.tell(DrainRequested())
    assert [view.draining for view in broker.to_frontend(FrontendView)] == [True]
    broker.submit("second", key="other")
    assert broker.refusal().reason is RefusalReason.BROKER_DRAINING
    assert broker.refusal().retry_after_ms == 1000
    broker.image(execution)
    assert len(broker.to_frontend(Outcome)) == 1
    broker.tell(DrainRequested())
    assert broker.sent() == []


def test_a_draining_broker_says_once_that_it_has_no_job_any_more(broker):
    broker.worker()
    execution = broker.run_job()
    assert Emptied() not in broker.tell(DrainRequested())
    assert Emptied() not in broker.image(execution), "it may have to be sent again"
    assert Emptied() in broker.frontend()
    assert Emptied() not in broker.frontend()


def test_states_are_what_their_names_say(queueing_broker):
    broker = queueing_broker
    broker.worker()
    execution = broker.run_job("a", key="1")
    broker.submit("b", key="2")
    assert isinstance(broker.job("a").state, Dispatched)
    assert isinstance(broker.job("b").state, Queued)
    broker.image(execution, "a")
    assert isinstance(broker.job("a").state, Delivering)
    assert isinstance(broker.job("b").state, Dispatched)


def test_a_broker_that_knows_nobody_wants_no_timer(broker):
    assert broker.core.next_deadline() is None
    broker.worker()
    assert broker.core.next_deadline() is not None
    broker.leaves("worker")
    assert broker.core.next_deadline() is None


def test_running_and_held_of_one_report_are_judged_apart(broker):
    broker.worker()
    first = broker.run_job("first")
    broker.image(first, "first")
    second = broker.run_job("second", key="other")
    broker.worker(running=running(second, "second"), held=(held(first, "first"),))
    assert (broker.view().cancel, broker.view().release) == ((), ())
    broker.frontend("second")
    assert (broker.view().cancel, broker.view().release) == ((), (first,))
