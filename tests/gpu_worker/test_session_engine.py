"""The worker session with its engine processes: death, hanging, replacement, backoff."""

import pytest
from samples.session_driver import SessionDriver
from samples.wire import claim, identifier

from gpu_worker.actions import Exit, RunJob
from gpu_worker.engine_keeper import Dying
from gpu_worker.events import TimerFired
from proto.failures import FailureCode
from proto.messages import JobPhase, Outcome, WorkerPhase

EXECUTION = identifier("execution")


@pytest.fixture
def worker() -> SessionDriver:
    return SessionDriver()


@pytest.fixture
def busy(worker) -> SessionDriver:
    worker.run_job()
    return worker


# --- Death -------------------------------------------------------------------------------------


def test_a_job_whose_engine_dies_is_a_crash_and_the_engine_is_replaced_at_once(worker):
    worker.run_job(claim=claim(crashes=1, attempts=2))
    worker.exited("killed by SIGSEGV")
    outcome = worker.outcome()
    assert outcome.failure.code is FailureCode.ENGINE_CRASHED
    assert outcome.failure.detail == "killed by SIGSEGV"
    assert (outcome.attempts, outcome.crashes) == (2, 2)
    assert worker.started() == [2]
    assert worker.report().running is None
    assert worker.report().phase is WorkerPhase.LOADING
    assert worker.report().engine_restarts == 1
    assert worker.report().held[0].claim.crashes == 2


def test_an_idle_engine_that_dies_is_replaced(worker):
    worker.become_ready()
    worker.exited()
    assert worker.sent(Outcome) == []
    assert worker.started() == [2]


def test_the_last_words_of_a_dead_engine_mean_nothing(busy):
    busy.exited()
    busy.ready(child=1)
    busy.loading(child=1)
    busy.finished(child=1)
    busy.exited(child=1)
    assert busy.deeds() == []
    busy.start("next")
    assert busy.of(RunJob) == []
    busy.ready(child=2)
    busy.start("one more")
    (run,) = busy.of(RunJob)
    assert run.child == 2


def test_an_engine_that_keeps_dying_is_started_less_and_less_often(worker):
    worker.become_ready()
    pauses = []
    for _ in range(6):
        worker.exited()
        pauses.append(worker.wait_for_engine())
    assert pauses == pytest.approx([0.0, 1.0, 2.0, 4.0, 5.0, 5.0])


def test_while_it_pauses_the_worker_says_why(worker):
    worker.become_ready()
    worker.exited()
    worker.exited("no space left on device")
    report = worker.report()
    assert report.phase is WorkerPhase.FAILED
    assert report.activity == "no space left on device"
    assert report.model is None


def test_a_ready_engine_sets_the_pauses_back(worker):
    worker.become_ready()
    for _ in range(4):
        worker.exited()
        worker.wait_for_engine()
    worker.ready()
    worker.exited()
    assert worker.started()


def test_a_hopeless_model_ends_the_worker(worker):
    worker.become_ready()
    worker.exited("no model in /models/flux", hopeless=True)
    assert worker.exit().code == 78
    assert worker.exit().reason == "no model in /models/flux"
    assert worker.started() == []


def test_a_job_whose_engine_says_that_its_device_is_unusable_fails_with_that(busy):
    busy.exited("EngineBroken: CUDA error", code=FailureCode.DEVICE_POISONED)
    outcome = busy.outcome()
    assert outcome.failure.code is FailureCode.DEVICE_POISONED
    assert outcome.failure.detail == "EngineBroken: CUDA error"
    assert outcome.crashes == 1
    assert busy.started() == [2]


def test_a_cancelled_job_stays_one_whatever_its_engine_says_in_the_end(busy):
    busy.viewed(cancel=(EXECUTION,))
    busy.exited("EngineBroken: CUDA error", code=FailureCode.DEVICE_POISONED)
    assert busy.outcome().failure.code is FailureCode.CANCELLED
    assert busy.outcome().crashes == 0


# --- The end of patience -----------------------------------------------------------------------


def die_unready(worker: SessionDriver, times: int) -> None:
    for _ in range(times):
        worker.wait_for_engine()
        worker.exited("no CUDA device")


def test_a_device_that_others_fill_is_waited_for_without_end():
    worker = SessionDriver(engine_failures_max=3)
    worker.tell(TimerFired())
    for _ in range(10):
        worker.wait_for_engine()
        worker.exited("others use 19.3 GB now", temporary=True)
    assert worker.of(Exit) == []
    assert worker.report().activity == "others use 19.3 GB now"
    worker.become_ready()


def test_a_worker_without_hope_of_an_engine_tells_the_broker_and_ends():
    worker = SessionDriver(engine_failures_max=3)
    worker.tell(TimerFired())
    die_unready(worker, 2)
    assert worker.of(Exit) == []
    die_unready(worker, 1)
    leave, over = worker.deeds()
    assert "3 engine processes" in leave.message.reason
    assert over == worker.exit()
    assert over.code == 1
    assert "3 engine processes" in over.reason
    assert "no CUDA device" in over.reason
    assert worker.left()


def test_processes_that_hang_in_loading_count_as_well():
    worker = SessionDriver(engine_failures_max=2)
    worker.after(50.1)
    worker.exited("killed by SIGKILL")
    worker.after(50.1)
    assert worker.killed() == [2]
    worker.exited("killed by SIGKILL")
    assert worker.exit().code == 1


def test_an_engine_that_became_ready_is_a_new_beginning():
    worker = SessionDriver(engine_failures_max=3)
    worker.tell(TimerFired())
    worker.viewed()
    die_unready(worker, 2)
    worker.wait_for_engine()
    worker.ready()
    worker.exited()
    assert worker.started(), "its own death is none of those"
    die_unready(worker, 2)
    assert worker.of(Exit) == []
    die_unready(worker, 1)
    assert worker.exit().code == 1


def test_a_draining_worker_just_leaves():
    worker = SessionDriver(engine_failures_max=1)
    worker.become_ready()
    worker.draw()
    worker.exited()
    worker.drain()
    worker.exited()
    assert worker.of(Exit) == []
    worker.viewed(release=(EXECUTION,))
    assert worker.exit().code == 0


# --- Hanging -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "limit_s"), [(JobPhase.TEXT, 5.0), (JobPhase.STEP, 6.0), (JobPhase.DECODE, 7.0)]
)
def test_an_engine_without_progress_is_killed_and_the_job_is_a_crash(busy, phase, limit_s):
    busy.progress(1, phase)
    busy.after(limit_s - 0.1)
    assert busy.killed() == []
    busy.after(0.2)
    assert busy.killed() == [1]
    assert busy.sent(Outcome) == [], "it may still hold the device"
    busy.exited("killed by SIGKILL")
    outcome = busy.outcome()
    assert outcome.failure.code is FailureCode.ENGINE_HUNG
    assert phase.value in outcome.failure.detail
    assert outcome.crashes == 1
    assert busy.started() == [2]


def test_each_step_is_progress(busy):
    for step in range(10):
        busy.progress(step)
        busy.after(5.9)
    assert busy.killed() == []


def test_loading_without_progress_is_hanging(worker):
    worker.after(0.1)
    worker.loading("weights", 10)
    worker.after(49.0)
    worker.loading("weights", 11)
    worker.after(49.9)
    assert worker.killed() == []
    worker.after(0.2)
    assert worker.killed() == [1]
    worker.exited("killed by SIGKILL")
    assert worker.started() == [2]


def test_an_engine_that_does_not_stop_is_killed(busy):
    busy.progress(step=1)
    busy.after(3.0)  # the step may take 6 s, the end of a cancelled job 4 s
    busy.viewed(cancel=(EXECUTION,))
    busy.after(3.9)
    assert busy.killed() == []
    busy.after(0.2)
    assert busy.killed() == [1]
    busy.exited("killed by SIGKILL")
    assert busy.outcome().failure.code is FailureCode.CANCELLED
    assert busy.outcome().crashes == 0, "the job was not wanted any more"


def test_a_cancel_does_not_kill_an_engine_whose_step_may_take_longer(busy):
    busy.progress(step=1)
    busy.viewed(cancel=(EXECUTION,))
    busy.after(5.5)
    assert busy.killed() == []
    busy.after(0.6)
    assert busy.killed() == [1]


def test_a_killed_engine_is_killed_once(busy):
    busy.after(5.1)
    assert busy.killed() == [1]
    busy.after(60.0)
    assert busy.killed() == []
    assert busy.reports()[-1].phase is WorkerPhase.LOADING


def test_a_killed_engine_is_not_ready_whatever_was_still_in_its_pipe(worker):
    worker.after(50.1)
    assert worker.killed() == [1]
    worker.ready()
    assert isinstance(worker.session.engine.state, Dying)
    worker.start()
    assert worker.of(RunJob) == []
    worker.after(1.0)
    worker.exited()
    assert worker.started() == [2]


def test_the_image_of_a_hung_engine_comes_too_late(busy):
    busy.after(5.1)
    assert busy.killed() == [1]
    busy.finished()
    outcome = busy.outcome()
    assert outcome.failure.code is FailureCode.ENGINE_HUNG
    assert outcome.crashes == 1
    assert busy.next_report().phase is not WorkerPhase.READY
    busy.exited()
    assert busy.sent(Outcome) == []
