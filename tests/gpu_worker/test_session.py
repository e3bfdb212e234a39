"""The worker session with its broker: reports, one job at a time, outcomes, drain. Events in, actions out."""

import pytest
from samples.session_driver import INCARNATION, SessionDriver
from samples.wire import CARD, PARAMETERS, READINGS, claim, identifier

from gpu_worker.actions import ReconnectToBroker, RunJob, SendToBroker, StartEngine
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import FromBroker, ReadingsTaken, TimerFired
from gpu_worker.executions import REMEMBERED_EXECUTIONS
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    MAX_IMAGE_BYTES,
    HeldOutcome,
    ImageMade,
    JobFailed,
    JobPhase,
    Leave,
    Outcome,
    Refuse,
    RunningExecution,
    WorkerPhase,
    WorkerReport,
)

EXECUTION = identifier("execution")


@pytest.fixture
def worker() -> SessionDriver:
    return SessionDriver()


@pytest.fixture
def ready(worker) -> SessionDriver:
    worker.become_ready()
    return worker


@pytest.fixture
def busy(worker) -> SessionDriver:
    worker.run_job()
    return worker


# --- Reports -----------------------------------------------------------------------------------


def test_it_begins_with_its_engine_and_a_report(worker):
    worker.tell(TimerFired())
    assert worker.deeds() == [
        StartEngine(child=1),
        SendToBroker(
            broker=0,
            message=WorkerReport(
                worker_id="worker",
                incarnation=INCARNATION,
                seq=1,
                host="host",
                phase=WorkerPhase.LOADING,
                activity="starting",
            ),
        ),
    ]


def test_each_change_is_reported_at_once(worker):
    worker.tell(TimerFired())
    worker.viewed()
    worker.loading("weights", 40)
    assert (worker.report().activity, worker.report().percent) == ("weights", 40)
    worker.loading("weights", 40)
    assert worker.reports() == [], "nothing new"
    worker.ready()
    assert worker.report().phase is WorkerPhase.READY
    assert worker.report().model == CARD
    worker.start()
    worker.drawn()
    assert worker.report().running is None


def test_what_its_broker_knows_already_is_reported_together(ready):
    ready.start()
    assert ready.reports() == [], "that broker has sent the START"
    assert ready.next_report().running is not None
    ready.drawn()
    assert ready.report().held[0].size_bytes == 0
    ready.encoded()
    assert ready.reports() == [], "and the outcome tells it the rest"
    assert ready.next_report().held[0].size_bytes > 0


def test_numbers_grow_with_every_message(busy):
    seqs = [report.seq for report in busy.reports()]
    for _ in range(3):
        busy.after(1.1)
        seqs += [report.seq for report in busy.reports()]
    busy.finished()
    seqs += [busy.outcome().seq, busy.next_report().seq]
    assert seqs == sorted(set(seqs))


def test_the_broker_sets_the_pace(ready):
    ready.viewed(heartbeat_interval_ms=200)
    ready.after(1.0, answered=False)
    ready.after(1.0, answered=False)
    assert len(ready.reports()) in {4, 5}


@pytest.mark.parametrize(("told_ms", "shortest_s", "longest_s"), [(0, 0.005, 0.02), (2**31, 50, 61)])
def test_the_pace_stays_within_reason(ready, told_ms, shortest_s, longest_s):
    ready.viewed(heartbeat_interval_ms=told_ms)
    ready.after(1.0)
    ready.viewed(heartbeat_interval_ms=told_ms)
    ready.loading()
    ready.session.contacts.contact(0).reported(ready.now)
    assert shortest_s <= ready.session.contacts.contact(0).next_report_at - ready.now <= longest_s


def test_a_new_life_of_the_broker_gets_a_report_at_once(ready):
    ready.viewed()
    assert ready.reports() == []
    ready.viewed(epoch=identifier("another"))
    assert ready.report().phase is WorkerPhase.READY


def test_readings_are_reported_with_their_age(ready):
    ready.tell(ReadingsTaken(readings=READINGS))
    ready.after(1.0, answered=False)
    (report,) = ready.reports()[-1:]
    assert report.readings.cpu_percent == READINGS.cpu_percent
    assert report.readings.age_ms == pytest.approx(1000, abs=300)


def test_without_an_answer_it_connects_anew_and_goes_on(busy):
    busy.progress(1)
    busy.after(3.1, answered=False)
    assert len(busy.of(ReconnectToBroker)) == 1
    assert busy.reports()
    busy.progress(2)
    busy.after(3.0, answered=False)
    assert len(busy.of(ReconnectToBroker)) == 1
    assert busy.reports()[-1].running.step == 2, "it goes on with its job"
    busy.finished()
    assert busy.outcome().image is not None


def test_a_start_is_a_word_of_the_broker_as_well(ready):
    ready.after(0.9)
    for n in range(4):
        ready.after(0.9, answered=False)
        assert not ready.of(ReconnectToBroker)
        ready.start(f"stale {n}", epoch=identifier("another"))
        assert not ready.of(ReconnectToBroker)


def test_a_broker_of_another_version_is_tried_again_and_again(ready):
    refuse = Refuse(reason=RefusalReason.VERSION_MISMATCH, detail="this broker speaks version 9")
    ready.tell(FromBroker(broker=0, message=refuse))
    assert ready.deeds() == []
    ready.after(1.5, answered=False)
    assert ready.reports()


# --- START -------------------------------------------------------------------------------------


def test_a_start_is_begun_and_reported(ready):
    ready.start()
    job = EngineJob(
        execution_id=EXECUTION, job_id=identifier("job"), prompt="a cat", parameters=PARAMETERS, attempts=0
    )
    assert ready.of(RunJob) == [RunJob(child=1, job=job)]
    report = ready.next_report()
    assert report.running == RunningExecution(
        execution_id=EXECUTION, claim=claim(remaining_ms=59_990), phase=JobPhase.TEXT, step=0, steps=4
    )
    assert report.phase is WorkerPhase.READY


def test_progress_is_in_the_next_report(busy):
    busy.progress(2)
    assert busy.reports() == []
    busy.after(1.1)
    running = busy.reports()[-1].running
    assert (running.phase, running.step) == (JobPhase.STEP, 2)
    assert running.claim.remaining_ms == pytest.approx(59_000, abs=200)


def test_a_start_that_comes_again_changes_nothing(busy):
    busy.start()
    assert busy.deeds() == []
    busy.finished()
    busy.start()
    assert busy.deeds() == [], "it is held"
    busy.viewed(release=(EXECUTION,))
    busy.start()
    assert busy.deeds() == [], "it has ended"


def test_a_start_that_comes_again_says_whose_the_running_job_is_now(busy):
    wanted = claim(detach=True, idempotency_hash=identifier("hash"), remaining_ms=90_000)
    busy.start(claim=wanted)
    assert busy.deeds() == [], "it begins nothing"
    busy.after(1.1)
    running = busy.reports()[-1].running
    assert (running.claim.detach, running.claim.idempotency_hash) == (True, identifier("hash"))
    assert running.claim.remaining_ms == pytest.approx(89_000, abs=200)
    busy.finished()
    assert busy.next_report().held[0].claim == wanted


def test_a_start_that_comes_again_never_shortens_the_time(busy):
    busy.after(2.0)
    deadline = busy.session.slot.deadline
    busy.start(claim=claim(remaining_ms=10))
    assert busy.session.slot.deadline == deadline
    assert busy.cancelled() == []


def test_a_start_that_comes_again_lengthens_the_time(worker):
    worker.run_job(claim=claim(remaining_ms=2_000))
    worker.after(1.5)
    worker.start(claim=claim(remaining_ms=2_000))
    worker.after(1.9)
    assert worker.cancelled() == []
    worker.after(0.2)
    assert worker.cancelled() == [EXECUTION]


@pytest.mark.parametrize("changes", [{"epoch": identifier("old")}, {"incarnation": identifier("old")}])
def test_a_stale_start_of_the_running_job_changes_nothing(busy, changes):
    before = busy.session.slot
    busy.start(claim=claim(detach=True), **changes)
    assert busy.deeds() == []
    assert busy.session.slot == before


def test_a_start_of_a_job_that_stops_changes_nothing(busy):
    busy.viewed(cancel=(EXECUTION,))
    before = busy.session.slot
    busy.start(claim=claim(detach=True, remaining_ms=90_000))
    assert busy.deeds() == []
    assert busy.session.slot == before


def test_it_remembers_enough_of_what_has_ended(ready):
    for n in range(20):
        ready.start(n)
        ready.finished(n)
        ready.viewed(release=(identifier(n),))
    ready.start(0)
    assert ready.deeds() == []
    assert REMEMBERED_EXECUTIONS >= 20


def refused(worker, reason):
    assert worker.refusal() == Refuse(
        reason=reason, job_id=identifier("job"), execution_id=identifier("other")
    )
    assert worker.reports(), "the broker learns at once why"
    assert worker.of(RunJob) == []


def test_a_busy_worker_refuses(busy):
    busy.start("other")
    refused(busy, RefusalReason.WORKER_BUSY)
    assert busy.report().running.execution_id == EXECUTION


@pytest.mark.parametrize("engine_is", ["loading", "dead", "dying"])
def test_a_worker_without_engine_refuses(worker, engine_is):
    worker.tell(TimerFired())
    worker.viewed()
    match engine_is:
        case "dead":
            worker.exited()
            worker.exited()
        case "dying":
            for _ in range(50):
                worker.after(1.0)
            assert worker.killed() == [1]
    worker.start("other")
    refused(worker, RefusalReason.WORKER_NOT_READY)


def test_a_draining_worker_refuses(busy):
    busy.drain()
    busy.start("other")
    refused(busy, RefusalReason.WORKER_DRAINING)


@pytest.mark.parametrize("changes", [{"epoch": identifier("old")}, {"incarnation": identifier("old")}])
def test_a_stale_start_is_refused(ready, changes):
    ready.start("other", **changes)
    refused(ready, RefusalReason.STALE_START)


def test_a_start_before_any_view_is_stale(worker):
    worker.tell(TimerFired())
    worker.ready()
    worker.start("other")
    refused(worker, RefusalReason.STALE_START)


def test_what_was_refused_is_not_begun_when_the_same_start_comes_again(worker):
    """The broker has counted it as not begun, and another execution may run already."""
    worker.tell(TimerFired())
    worker.ready()
    worker.start("other")
    worker.viewed()
    worker.start("other")
    refused(worker, RefusalReason.STALE_START)
    worker.start("third")
    assert len(worker.of(RunJob)) == 1


# --- The end of an execution -------------------------------------------------------------------


def test_an_image_is_pushed_once_and_held(busy):
    busy.finished(png=b"these pixels")
    assert busy.outcome() == Outcome(
        worker_id="worker",
        incarnation=INCARNATION,
        seq=busy.outcome().seq,
        execution_id=EXECUTION,
        job_id=identifier("job"),
        attempts=0,
        crashes=0,
        image=ImageMade(inference_time_s=1.5, seed=7, model=CARD, steps_time_s=1.2),
        body=b"these pixels",
    )
    listed = HeldOutcome(execution_id=EXECUTION, claim=claim(), failure=None, size_bytes=12)
    assert busy.next_report().held == (listed,)
    busy.after(5.0)
    assert busy.sent(Outcome) == []
    assert busy.reports()[-1].held == (listed,)


def test_a_held_outcome_is_sent_again_when_asked_for_and_dropped_when_released(busy):
    busy.finished()
    first = busy.outcome()
    busy.viewed(resend=(EXECUTION, identifier("unknown")))
    assert busy.outcome().body == first.body
    assert busy.outcome().seq > first.seq
    busy.viewed(release=(EXECUTION, identifier("unknown")))
    busy.viewed(resend=(EXECUTION,))
    assert busy.sent(Outcome) == []


def test_the_next_job_starts_while_outcomes_are_held(busy):
    busy.finished()
    busy.start("next")
    assert busy.of(RunJob)
    assert [held.execution_id for held in busy.next_report().held] == [EXECUTION]


def test_the_oldest_outcomes_give_way_to_newer_bytes(ready):
    for n in range(4):
        ready.start(n)
        ready.finished(n, png=bytes(400))
        ready.viewed()
    ready.after(1.1)
    assert [held.execution_id for held in ready.reports()[-1].held] == [identifier(2), identifier(3)]


def test_one_outcome_is_held_however_large_it_is(busy):
    busy.finished(png=bytes(5000))
    assert len(busy.next_report().held) == 1


def test_an_outcome_that_nobody_releases_is_dropped_in_the_end(busy):
    busy.finished()
    busy.after(119.0)
    assert len(busy.session.held) == 1
    busy.after(2.0)
    assert len(busy.session.held) == 0


def test_outcomes_that_nobody_released_in_time_are_counted(ready):
    for n in range(3):
        ready.draw(n, png=bytes(400))
        ready.viewed()
    ready.after(1.1)
    assert ready.reports()[-1].outcomes_shed == 1, "by bytes"
    ready.after(121.0)
    assert ready.reports()[-1].outcomes_shed == 3, "by age"


def test_a_kept_image_is_listed_as_released_and_can_be_sent_again(busy):
    busy.finished(png=b"these pixels")
    busy.viewed(keep=(EXECUTION, identifier("unknown")))
    assert busy.deeds() == []
    busy.after(1.1)
    listed = HeldOutcome(execution_id=EXECUTION, claim=claim(), failure=None, size_bytes=12, released=True)
    assert busy.reports()[-1].held == (listed,)
    busy.viewed(resend=(EXECUTION,))
    assert busy.outcome().body == b"these pixels"
    busy.start()
    assert busy.deeds() == [], "it has ended"


def test_a_kept_image_is_kept_for_its_time_and_is_not_missed(busy):
    busy.finished()
    busy.after(60.0)
    busy.viewed(keep=(EXECUTION,))
    busy.after(299.0)
    busy.viewed(keep=(EXECUTION,))
    busy.after(0.9)
    assert EXECUTION in busy.session.held
    busy.after(0.2)
    assert EXECUTION not in busy.session.held
    busy.after(1.1)
    assert busy.reports()[-1].outcomes_shed == 0


def test_a_kept_image_is_dropped_when_it_is_released(busy):
    busy.finished()
    busy.viewed(keep=(EXECUTION,))
    busy.viewed(release=(EXECUTION,))
    busy.viewed(resend=(EXECUTION,))
    assert busy.sent(Outcome) == []


def test_a_failure_is_not_kept(busy):
    busy.failed(FailureCode.OUT_OF_MEMORY)
    busy.viewed(keep=(EXECUTION,))
    assert len(busy.session.held) == 0


def test_what_is_sent_again_is_not_pushed_out_by_what_is_kept_at_once(ready):
    for n in range(3):
        ready.draw(n)
        if n < 2:
            ready.viewed(keep=(identifier(n),))
    ready.viewed(keep=(identifier(2),), resend=(identifier(0),))
    assert ready.outcome().execution_id == identifier(0)
    assert identifier(0) not in ready.session.held, "two are kept at most"


def test_a_failure_of_the_job_is_an_outcome(busy):
    busy.failed(FailureCode.NON_FINITE_IMAGE, "all black")
    outcome = busy.outcome()
    assert outcome.failure == JobFailed(code=FailureCode.NON_FINITE_IMAGE, detail="all black")
    assert (outcome.image, outcome.body, outcome.crashes) == (None, b"", 0)
    busy.start("next")
    assert busy.of(RunJob)


def test_an_endless_detail_is_cut(busy):
    busy.failed(FailureCode.ENGINE_ERROR, "x" * 100_000)
    assert len(busy.outcome().failure.detail) <= 1024


def test_an_image_that_no_frame_can_hold_is_a_failure(busy):
    busy.finished(png=bytes(MAX_IMAGE_BYTES + 1))
    assert busy.outcome().failure.code is FailureCode.IMAGE_TOO_LARGE
    assert busy.outcome().body == b""


def test_words_about_another_execution_mean_nothing(busy):
    busy.finished("another")
    busy.failed(FailureCode.ENGINE_ERROR, execution="another")
    busy.progress(3, execution="another")
    assert busy.deeds() == []
    assert busy.session.slot.step == 0


# --- Cancel and deadline -----------------------------------------------------------------------


def test_a_cancelled_job_stops_and_says_so(busy):
    busy.viewed(cancel=(EXECUTION,))
    assert busy.cancelled() == [EXECUTION]
    busy.viewed(cancel=(EXECUTION,))
    assert busy.cancelled() == [], "once is enough"
    busy.failed(FailureCode.CANCELLED)
    assert busy.outcome().failure.code is FailureCode.CANCELLED
    busy.start("next")
    assert busy.of(RunJob)


def test_a_cancelled_job_that_finishes_anyway_is_a_cancelled_one(busy):
    busy.viewed(cancel=(EXECUTION,))
    busy.finished()
    assert busy.outcome().failure.code is FailureCode.CANCELLED
    assert busy.outcome().body == b""


def test_a_cancel_of_something_else_means_nothing(busy):
    busy.viewed(cancel=(identifier("other"),))
    assert busy.deeds() == []


def test_a_deadline_stops_the_job(worker):
    worker.run_job(claim=claim(remaining_ms=2_000))
    worker.after(1.9)
    assert worker.cancelled() == []
    worker.after(0.2)
    assert worker.cancelled() == [EXECUTION]
    worker.failed(FailureCode.CANCELLED)
    assert worker.outcome().failure.code is FailureCode.DEADLINE_EXCEEDED


def test_a_job_whose_time_is_over_already_is_stopped_at_once(worker):
    worker.become_ready()
    worker.start(claim=claim(remaining_ms=0))
    assert worker.cancelled() == [EXECUTION]


# --- Drain and end -----------------------------------------------------------------------------


def test_an_idle_worker_that_drains_leaves_at_once(ready):
    ready.drain()
    assert ready.left()
    assert ready.exit().code == 0


def test_a_busy_worker_finishes_what_it_runs_and_waits_for_its_release(busy):
    busy.drain()
    assert busy.report().phase is WorkerPhase.DRAINING
    assert not busy.left()
    busy.progress(1)
    busy.after(5.0)
    assert busy.reports(), "heartbeats go on"
    busy.finished()
    assert busy.outcome().image is not None
    assert not busy.left()
    busy.viewed(release=(EXECUTION,))
    assert busy.left()
    assert busy.exit().code == 0


def test_a_drained_worker_does_not_wait_for_ever_for_a_release(busy):
    busy.drain()
    busy.finished()
    busy.after(1.9)
    assert not busy.left()
    busy.after(0.2)
    assert busy.left()
    assert busy.exit().code == 0


def test_kept_images_do_not_hold_up_a_drained_worker(busy):
    busy.finished()
    busy.viewed(keep=(EXECUTION,))
    busy.start("next")
    busy.drain()
    busy.finished("next")
    assert not busy.left()
    busy.viewed(keep=(identifier("next"),))
    assert busy.left()
    assert busy.exit().code == 0


def test_the_time_to_drain_is_limited(busy):
    busy.drain()
    for _ in range(24):
        busy.after(1.0)
        busy.progress(1)
    assert not busy.left()
    busy.after(1.1)
    assert busy.left()
    assert busy.exit().code == 0


def test_told_twice_to_end_it_ends(busy):
    busy.drain()
    busy.drain()
    assert busy.left()
    assert busy.exit().code == 0


def test_a_draining_worker_starts_no_engine(busy):
    busy.drain()
    busy.exited()
    assert busy.outcome().failure.code is FailureCode.ENGINE_CRASHED
    busy.viewed(release=(EXECUTION,))
    assert busy.started() == []
    assert busy.exit().code == 0


def test_a_superseded_worker_ends_and_says_what_to_do(ready):
    detail = "another worker has registered as 'worker', or this one had left"
    refuse = Refuse(reason=RefusalReason.SUPERSEDED, detail=detail)
    ready.tell(FromBroker(broker=0, message=refuse))
    over = ready.exit()
    assert over.code != 0
    assert "another worker" in over.reason
    assert "worker_id" in over.reason
    assert not ready.left(), "that would be the leave of the other one"


@pytest.mark.parametrize("how", ["superseded", "drained", "hopeless"])
def test_when_it_is_over_it_does_nothing_more(worker, how):
    worker.tell(TimerFired())
    worker.viewed()
    match how:
        case "superseded":
            worker.exited()
            worker.exited(child=2)
            worker.now += 10.0
            worker.tell(FromBroker(broker=0, message=Refuse(reason=RefusalReason.SUPERSEDED)))
        case "drained":
            worker.drain()
        case "hopeless":
            worker.exited("no such folder", hopeless=True)
    assert worker.deeds()[-1] is worker.exit(), "the last thing that it does"
    worker.now += 1000.0
    for event in (TimerFired(), FromBroker(broker=0, message=Refuse(reason=RefusalReason.SUPERSEDED))):
        assert worker.tell(event) == []
    assert worker.start() == []
    assert worker.session.next_deadline() is None


def test_a_leave_is_the_last_message(ready):
    ready.drain()
    sends = ready.of(SendToBroker)
    assert isinstance(sends[-1].message, Leave)
    assert sends[-1].message.incarnation == INCARNATION
