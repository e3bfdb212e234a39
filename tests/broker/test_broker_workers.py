"""Workers as the broker sees them: registration, views, silence, loss (PROTOCOL.md §4)."""

import pytest
from samples.broker_driver import Driver
from samples.wire import EPOCH, READINGS, held, identifier, leave, running, snapshot_request, worker_report

from broker.actions import SendToWorker
from broker.events import FromFrontend, FromWorker
from broker.jobs import JobTable
from broker.status_text import status_text
from broker.workers import MAX_FENCED, Idle, Running
from proto.failures import FailureCode, RefusalReason
from proto.messages import FrontendView, JobState, Outcome, Refuse, Snapshot, WorkerPhase, WorkerView


def silently(broker, duration_s):
    """Time passes; the frontend goes on reporting its job, so that only the worker is silent."""
    end = broker.now + duration_s
    while broker.now < end:
        broker.after(min(1.0, end - broker.now))
        actions = broker.actions
        broker.frontend("job")
        broker.actions = actions + broker.actions


# --- Reports and views -------------------------------------------------------------------------


def test_the_first_report_registers_and_every_report_is_answered_with_its_number(broker):
    broker.worker(seq=41)
    assert broker.registered() == {"worker"}
    assert broker.view() == WorkerView(broker_id="broker", epoch=EPOCH, echo=41, heartbeat_interval_ms=1000)
    broker.worker(seq=57)
    assert broker.view().echo == 57


def test_a_report_that_was_overtaken_is_ignored(broker):
    broker.worker(seq=5)
    for seq in (5, 4):
        broker.worker(seq=seq, phase=WorkerPhase.FAILED)
        assert broker.sent() == []
    (worker,) = broker.core.state.workers
    assert worker.report.phase is WorkerPhase.READY


def test_a_worker_is_answered_where_it_spoke_last(broker):
    broker.from_worker(worker_report(seq=1), b"first")
    broker.from_worker(worker_report(seq=2), b"second")
    assert [action.route for action in broker.sent()] == [b"second"]
    broker.submit()
    assert [action.route for action in broker.sent() if isinstance(action, SendToWorker)] == [b"second"]


def test_frontends_are_told_at_once_whether_a_worker_is_ready_and_soon_how_many(broker):
    broker.frontend()
    broker.worker(phase=WorkerPhase.LOADING)
    assert broker.to_frontend(FrontendView) == []
    broker.worker()
    assert [view.ready_workers for view in broker.to_frontend(FrontendView)] == [1]
    broker.worker("other")
    broker.worker("a third one")
    assert broker.to_frontend(FrontendView) == []
    broker.after(broker.timing.probe_interval_s)
    assert [view.ready_workers for view in broker.to_frontend(FrontendView)] == [3]
    broker.worker("other", phase=WorkerPhase.DRAINING)
    broker.leaves("a third one")
    broker.after(broker.timing.probe_interval_s)
    assert [view.ready_workers for view in broker.to_frontend(FrontendView)] == [1]
    broker.leaves("worker")
    assert [view.ready_workers for view in broker.to_frontend(FrontendView)] == [0]


def test_an_unknown_execution_is_to_be_cancelled_and_an_unknown_outcome_released(broker):
    stray, kept = identifier("stray"), identifier("kept")
    broker.worker(running=running(stray, "nobody's"), held=(held(kept, "nobody's"),))
    assert broker.view().cancel == (stray,)
    assert broker.view().release == (kept,)
    assert broker.view().resend == ()


def test_the_current_execution_is_left_alone(broker):
    broker.worker()
    execution = broker.run_job()
    broker.runs(execution)
    assert (broker.view().cancel, broker.view().release, broker.view().resend) == ((), (), ())


# --- The end of an incarnation -----------------------------------------------------------------


def test_a_new_incarnation_supersedes_the_old_one_at_once(broker):
    broker.worker()
    broker.run_job()
    broker.worker(life=2)
    assert broker.registered() == {"worker"}
    assert broker.statuses()[identifier("job")] in {JobState.QUEUED, JobState.RUNNING}
    assert broker.started().incarnation == identifier("worker 2")
    assert broker.job().attempts == 2


def test_the_superseded_incarnation_is_refused_once_the_other_has_reported_for_a_heartbeat(broker):
    broker.worker()
    broker.worker(life=2)
    broker.worker(life=1)
    assert (broker.to_worker(Refuse), broker.to_worker(WorkerView)) == ([], [])
    broker.after(1.0)
    broker.worker(life=2)
    for _ in range(2):
        broker.worker(life=1)
        (refuse,) = broker.to_worker(Refuse)
        assert refuse.reason is RefusalReason.SUPERSEDED
        assert "'worker'" in refuse.detail
        assert broker.to_worker(WorkerView) == []
    (worker,) = broker.core.state.workers
    assert worker.incarnation == identifier("worker 2")


@pytest.mark.parametrize("first", [1, 2])
def test_what_lay_in_a_socket_of_a_process_that_is_gone_ends_no_living_one(broker, first):
    """The broker stood still while process 1 came and went, and process 2 came: late words look young."""
    for life in (first, 3 - first):
        broker.worker(life=life, age_ms=500 if life == 1 else 5_000)
    for _ in range(8):
        broker.after(0.25)
        broker.worker(life=2, age_ms=round(5_000 + 1000 * (broker.now - 100.0)))
        assert broker.to_worker(Refuse) == []
    broker.worker(life=1, age_ms=2_500)  # Its last word.
    (worker,) = broker.core.state.workers
    assert worker.incarnation == identifier("worker 2")


def test_who_has_left_does_not_come_back(broker):
    broker.worker()
    broker.leaves("worker")
    broker.worker(life=2)
    broker.after(1.6)
    broker.worker(life=1)
    (refuse,) = broker.to_worker(Refuse)
    assert refuse.reason is RefusalReason.SUPERSEDED


def test_the_fence_is_bounded(broker):
    for life in range(MAX_FENCED + 10):
        broker.worker(life=life)
    assert len(broker.core.state.workers.fenced) == MAX_FENCED


def test_a_worker_that_leaves_is_gone_at_once_and_its_job_goes_on_elsewhere(broker):
    broker.worker()
    broker.run_job()
    broker.worker("other")
    broker.leaves("worker")
    assert broker.registered() == {"other"}
    assert broker.started("other").claim.attempts == 2
    assert broker.core.state.workers.lost == {}


def test_a_leave_of_nobody_means_nothing(broker):
    broker.worker()
    broker.from_worker(leave(identifier("stranger")))
    assert broker.sent() == []
    assert broker.registered() == {"worker"}


# --- Silence -----------------------------------------------------------------------------------


def test_a_silent_worker_is_probed(broker):
    broker.worker()
    assert broker.after(1.49) == []
    broker.after(1.0)
    probes = broker.to_worker(WorkerView)
    assert 3 <= len(probes) <= 5
    assert {probe.echo for probe in probes} == {1}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_silent_worker_is_lost_after_its_time(broker, busy):
    broker.frontend()
    broker.worker()
    if busy:
        broker.run_job()
    silently(broker, 7.9)
    assert broker.registered() == {"worker"}
    silently(broker, 0.4)
    assert broker.registered() == set()
    assert set(broker.core.state.workers.lost) == {"worker"}
    if busy:
        assert broker.statuses()[identifier("job")] is JobState.QUEUED


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_an_unreachable_worker_is_lost_after_the_grace(broker, busy):
    broker.frontend()
    broker.worker()
    if busy:
        broker.run_job()
    silently(broker, 1.6)
    assert broker.to_worker(WorkerView)
    broker.unreachable()
    silently(broker, 1.9)
    assert broker.registered() == {"worker"}
    silently(broker, 0.4)
    assert broker.registered() == set()


def test_the_grace_counts_from_the_first_failed_send(broker):
    broker.worker()
    broker.after(1.6)
    broker.unreachable()
    broker.after(1.0)
    broker.unreachable()
    broker.after(1.3)
    assert broker.registered() == set()


def test_a_worker_that_comes_back_within_the_grace_was_never_lost(broker):
    broker.frontend()
    broker.worker()
    execution = broker.run_job()
    silently(broker, 1.6)
    broker.unreachable()
    silently(broker, 1.5)
    broker.runs(execution)
    silently(broker, 1.0)
    assert broker.registered() == {"worker"}
    assert broker.job().current_execution == execution


def test_an_outcome_is_a_sign_of_life_as_well(broker):
    broker.frontend()
    broker.worker()
    execution = broker.run_job()
    silently(broker, 1.6)
    broker.unreachable()
    silently(broker, 1.0)
    broker.image(execution)
    silently(broker, 1.3)
    assert broker.registered() == {"worker"}


def test_an_unreachable_route_of_nobody_means_nothing(broker):
    broker.worker()
    broker.unreachable("stranger")
    broker.after(3.0)
    assert broker.registered() == {"worker"}


def test_no_job_is_given_to_a_worker_that_is_not_heard(broker):
    broker.worker()
    broker.after(1.6)
    broker.submit()
    assert broker.starts() == []
    assert broker.refusal().reason is RefusalReason.WORKERS_NOT_READY
    assert "1 registered: silent" in broker.refusal().detail


def test_one_that_has_just_lost_its_engine_is_not_called_silent(broker):
    broker.worker()
    broker.failure(broker.run_job(), FailureCode.ENGINE_CRASHED)
    broker.submit("other", key="other")
    assert broker.refusal().reason is RefusalReason.WORKERS_NOT_READY
    assert "1 registered: loading" in broker.refusal().detail


def test_a_lost_worker_that_speaks_again_is_registered_again(broker):
    broker.worker()
    execution = broker.run_job()
    broker.after(8.3)
    broker.runs(execution)
    assert broker.registered() == {"worker"}
    assert broker.core.state.workers.lost == {}


def test_a_lost_worker_is_shown_for_a_while(broker):
    def states():
        broker.from_frontend(snapshot_request())
        (snapshot,) = broker.to_frontend(Snapshot)
        return [(row.report.worker_id, row.state) for row in snapshot.workers]

    broker.worker()
    broker.after(8.3)
    assert states() == [("worker", "lost")]
    broker.after(299.0)
    assert states() == [("worker", "lost")]
    broker.after(2.0)
    assert states() == []
    assert broker.core.next_deadline() is None


# --- The snapshot ------------------------------------------------------------------------------


def test_the_snapshot_shows_what_the_broker_knows(broker):
    broker.worker(readings=READINGS, held=(held(identifier("kept"), job="earlier"),))
    broker.worker("loads", phase=WorkerPhase.LOADING)
    broker.run_job()
    broker.submit("second", key="other")
    broker.after(0.5)
    broker.tell(FromFrontend(route=b"asks", message=snapshot_request(9)))
    (action,) = broker.sent()
    snapshot = action.message
    assert action.route == b"asks"
    assert (snapshot.broker_id, snapshot.epoch, snapshot.echo) == ("broker", EPOCH, 9)
    assert (snapshot.in_flight, snapshot.queued) == (1, 0)
    assert snapshot.rejected == {RefusalReason.ALL_WORKERS_BUSY: 1}
    rows = {row.report.worker_id: row for row in snapshot.workers}
    assert {name: row.state for name, row in rows.items()} == {"worker": "busy", "loads": "loading"}
    assert rows["worker"].report_age_ms == 500
    assert rows["worker"].report.held == ()


@pytest.mark.parametrize(("is_lost", "counts"), [(False, (1, 2)), (True, (0, 3))])
def test_jobs_are_counted_without_a_look_at_each(monkeypatch, is_lost, counts):
    broker = Driver(queue_limit=5)
    broker.worker()
    broker.frontend()
    for number in range(3):
        broker.submit(f"job {number}", key=f"key {number}")
    if is_lost:
        broker.leaves("worker")
    monkeypatch.setattr(JobTable, "__iter__", None)
    (asked,) = broker.core.handle(FromFrontend(route=b"asks", message=snapshot_request(1)), broker.now)
    assert (asked.message.in_flight, asked.message.queued) == counts
    assert status_text(broker.core.state).endswith("{} running, {} waiting".format(*counts))


def test_the_counters_count_each_job_once(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(execution)
    broker.image(execution)
    broker.frontend()
    failing = broker.run_job("failing")
    broker.failure(failing, FailureCode.ENGINE_ERROR, "failing")
    broker.frontend()
    broker.run_job("left")
    broker.frontend()
    counters = broker.counters
    assert (counters.completed, counters.failed, counters.cancelled) == (1, 1, 1)


# --- What workers should not say ---------------------------------------------------------------


def test_an_outcome_of_an_execution_that_is_not_current_is_dropped_and_counted(broker):
    broker.worker()
    execution = broker.run_job()
    broker.image(identifier("another"))
    assert broker.to_frontend(Outcome) == []
    assert broker.counters.shed["fenced_images"] == 1
    broker.image(execution)
    assert len(broker.to_frontend(Outcome)) == 1


def test_a_worker_that_runs_something_else_has_lost_the_job(broker):
    broker.worker()
    execution = broker.run_job()
    broker.runs(identifier("something else"), "unknown")
    assert broker.view().cancel == (identifier("something else"),)
    assert broker.job().current_execution is None
    assert execution not in {start.execution_id for start in broker.starts()}


def test_a_refusal_of_nothing_means_nothing(broker):
    broker.worker()
    refuse = Refuse(reason=RefusalReason.WORKER_BUSY, execution_id=identifier("unknown"))
    broker.tell(FromWorker(route=b"x", message=refuse))
    broker.tell(FromWorker(route=b"x", message=Refuse(reason=RefusalReason.WORKER_BUSY)))
    assert broker.sent() == []
    (worker,) = broker.core.state.workers
    assert isinstance(worker.slot, Idle)


def test_an_unwanted_execution_still_fills_the_slot(broker):
    broker.runs(identifier("stray"), "unknown")
    (worker,) = broker.core.state.workers
    assert isinstance(worker.slot, Running)
    broker.submit()
    assert broker.starts() == []
    assert broker.job() is not None, "the worker will be idle in a moment"
