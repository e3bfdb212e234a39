"""A worker whose engines die on one job after the other takes none for a while."""

import pytest
from samples.session_driver import SessionDriver
from samples.wire import claim, identifier

from gpu_worker.actions import RunJob
from proto.failures import FailureCode, RefusalReason
from proto.messages import WorkerPhase

QUARANTINE_S = 300.0


@pytest.fixture
def worker() -> SessionDriver:
    worker = SessionDriver(quarantine_s=QUARANTINE_S)
    worker.become_ready()
    return worker


def die_on(worker: SessionDriver, digest: object, execution: object, **exit_: object) -> None:
    worker.start_with(digest, execution)
    worker.exited(**exit_)


@pytest.fixture
def quarantined(worker) -> SessionDriver:
    die_on(worker, "this", 1)
    worker.ready()
    die_on(worker, "that", 2)
    return worker


def test_deaths_on_two_different_jobs_are_a_quarantine(quarantined):
    assert quarantined.started() == []
    report = quarantined.report()
    assert report.phase is WorkerPhase.QUARANTINED
    assert report.activity.startswith("quarantined for 300 s: its engine died on two different jobs")
    assert "killed by SIGSEGV" in report.activity
    assert report.model is None
    assert quarantined.wait_for_engine() == pytest.approx(QUARANTINE_S)


def test_a_quarantined_worker_refuses_jobs(quarantined):
    quarantined.start("other")
    assert quarantined.refusal().reason is RefusalReason.WORKER_NOT_READY
    assert quarantined.of(RunJob) == []


def test_another_life_of_the_broker_ends_no_quarantine(quarantined):
    quarantined.after(100.0)
    quarantined.viewed(epoch=identifier("another"))
    assert quarantined.report().phase is WorkerPhase.QUARANTINED
    assert quarantined.wait_for_engine() == pytest.approx(QUARANTINE_S - 100.0)


def test_after_the_quarantine_it_loads_and_takes_jobs(quarantined):
    quarantined.wait_for_engine()
    assert quarantined.reports()[-1].phase is WorkerPhase.LOADING
    quarantined.ready()
    assert quarantined.report().phase is WorkerPhase.READY
    quarantined.draw("next")
    assert quarantined.outcome().image is not None


@pytest.mark.parametrize("digest", ["this", "another"])
def test_one_more_death_without_an_image_is_another_quarantine(quarantined, digest):
    for execution in range(3, 6):
        quarantined.wait_for_engine()
        quarantined.ready()
        die_on(quarantined, digest, execution)
        assert quarantined.report().phase is WorkerPhase.QUARANTINED
        assert quarantined.wait_for_engine() == pytest.approx(QUARANTINE_S)
        quarantined.exited()  # While it loads: not a job's doing.
        assert quarantined.report().phase is not WorkerPhase.QUARANTINED


def test_an_image_ends_the_suspicion(quarantined):
    quarantined.wait_for_engine()
    quarantined.ready()
    quarantined.draw("next")
    die_on(quarantined, "this", 3)
    assert quarantined.started(), "that is one again"
    quarantined.ready()
    die_on(quarantined, "that", 4)
    assert quarantined.report().phase is WorkerPhase.QUARANTINED


def test_an_image_between_two_deaths_is_no_quarantine(worker):
    for execution, digest in enumerate(("this", "that", "another")):
        die_on(worker, digest, execution)
        assert worker.started()
        worker.ready()
        worker.draw(f"image {execution}")


def test_an_image_that_nobody_wants_any_more_is_one(worker):
    die_on(worker, "this", 1)
    worker.ready()
    worker.start("cancelled")
    worker.viewed(cancel=(identifier("cancelled"),))
    worker.finished("cancelled")
    die_on(worker, "that", 2)
    assert worker.started()


def test_a_job_that_merely_fails_is_no_image(worker):
    die_on(worker, "this", 1)
    worker.ready()
    worker.start("failing")
    worker.failed(FailureCode.ENGINE_ERROR, execution="failing")
    die_on(worker, "that", 2)
    assert worker.report().phase is WorkerPhase.QUARANTINED


def test_the_same_job_again_and_again_is_its_own_fault(worker):
    for execution in range(4):
        die_on(worker, "this", execution)
        assert worker.started(), "at once"
        worker.ready()


def test_deaths_without_a_job_do_not_count(worker):
    die_on(worker, "this", 1)
    worker.exited("while it loads")
    worker.wait_for_engine()
    worker.ready()
    worker.exited("while it is idle")
    assert worker.started()
    worker.ready()
    die_on(worker, "this", 2)
    assert worker.started()


def test_a_poisoned_device_counts(worker):
    for execution, digest in enumerate(("this", "that")):
        die_on(worker, digest, execution, code=FailureCode.DEVICE_POISONED)
        assert worker.outcome().failure.code is FailureCode.DEVICE_POISONED
        worker.ready()
    assert worker.session.engine.is_quarantined


@pytest.mark.parametrize("too_late", [False, True])
def test_an_engine_that_hangs_in_a_job_counts(worker, too_late):
    die_on(worker, "this", 1)
    worker.ready()
    worker.start_with("that", 2)
    worker.after(5.1)
    assert worker.killed() == [2]
    if too_late:
        worker.finished(2)  # It was still in the pipe.
    worker.exited("killed by SIGKILL")
    assert worker.session.engine.is_quarantined
    assert worker.report().phase is WorkerPhase.QUARANTINED


def test_an_engine_that_is_killed_because_it_does_not_stop_counts(worker):
    """Otherwise a device on which everything hangs would not be noticed where deadlines are short."""
    die_on(worker, "this", 1)
    worker.ready()
    worker.start(2, claim=claim(parameters_digest=identifier("that"), remaining_ms=1000))
    worker.after(5.1)
    assert worker.killed() == [2]
    worker.exited("killed by SIGKILL")
    assert worker.outcome().failure.code is FailureCode.DEADLINE_EXCEEDED
    assert worker.report().phase is WorkerPhase.QUARANTINED


def test_an_engine_that_hangs_in_loading_does_not_count(worker):
    die_on(worker, "this", 1)
    worker.after(50.1)
    assert worker.killed() == [2]
    worker.exited("killed by SIGKILL")
    assert worker.report().phase is not WorkerPhase.QUARANTINED


def test_a_quarantined_worker_that_drains_leaves(quarantined):
    quarantined.viewed(release=(identifier(1), identifier(2)))
    quarantined.drain()
    assert quarantined.left()
    assert quarantined.exit().code == 0


def test_the_quarantine_can_be_turned_off():
    worker = SessionDriver(quarantine_s=0.0)
    worker.become_ready()
    for execution in range(4):
        die_on(worker, f"digest {execution}", execution)
        assert worker.started()
        assert worker.report().phase is WorkerPhase.LOADING
        worker.ready()
