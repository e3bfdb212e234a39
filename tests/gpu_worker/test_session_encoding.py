"""The worker session while PNGs are being made beside the next job, and when its engine ran out of memory."""

import pytest
from samples.session_driver import SessionDriver
from samples.wire import CARD, claim, identifier

from gpu_worker.actions import RunJob
from gpu_worker.slot import Free
from proto.failures import RETRYABLE_FAILURES, FailureCode
from proto.messages import HeldOutcome, ImageMade, JobPhase, Outcome, WorkerPhase

FIRST, SECOND = identifier("first"), identifier("second")
UNREADY = HeldOutcome(execution_id=FIRST, claim=claim(), failure=None, size_bytes=0)


@pytest.fixture
def drawn() -> SessionDriver:
    """Has drawn its first image."""
    worker = SessionDriver()
    worker.run_job("first")
    worker.drawn("first")
    return worker


@pytest.fixture
def both(drawn) -> SessionDriver:
    """Draws the second while the PNG of the first is being made."""
    drawn.start("second", "other job")
    assert drawn.of(RunJob)
    return drawn


# --- The slot ----------------------------------------------------------------------------------


def test_the_slot_ends_with_the_pixels_and_the_report_says_so_at_once(drawn):
    assert drawn.report().running is None
    assert drawn.report().held == (UNREADY,)
    assert drawn.sent(Outcome) == []


def test_the_next_job_runs_while_the_png_is_made(both):
    report = both.next_report()
    assert (report.running.execution_id, report.held) == (SECOND, (UNREADY,))
    both.encoded("first", png=b"the png")
    outcome = both.outcome()
    assert (outcome.execution_id, outcome.body) == (FIRST, b"the png")
    assert outcome.image == ImageMade(inference_time_s=1.5, seed=7, model=CARD, steps_time_s=1.2)
    report = both.next_report()
    assert report.held[0].size_bytes == len(b"the png")
    assert report.running.execution_id == SECOND, "it goes on"


def test_each_png_ends_its_own_execution(both):
    both.drawn("second")
    assert [held.execution_id for held in both.report().held] == [FIRST, SECOND]
    both.encoded("second", png=b"2")
    assert (both.outcome().execution_id, both.outcome().body) == (SECOND, b"2")
    both.encoded("first", png=b"1")
    assert (both.outcome().execution_id, both.outcome().body) == (FIRST, b"1")


def test_a_png_of_what_was_never_drawn_is_nothing(both):
    both.encoded("second")
    assert both.deeds() == []
    assert both.session.slot.execution_id == SECOND


def test_a_start_of_what_is_drawn_begins_nothing(drawn):
    drawn.start("first")
    assert drawn.deeds() == []


def test_an_image_that_becomes_no_png_is_a_failure_and_the_engine_stays(both):
    both.failed(FailureCode.OUT_OF_MEMORY, execution="first")
    assert both.outcome().failure.code is FailureCode.OUT_OF_MEMORY
    assert both.killed() == []
    assert both.session.slot.execution_id == SECOND


def test_what_was_found_of_prompts_is_counted(drawn):
    for execution, text_cached in enumerate([True, False, True, None]):
        drawn.start(execution)
        drawn.drawn(execution, text_cached=text_cached)
    report = drawn.report()
    assert (report.prompt_cache_hits, report.prompt_cache_misses) == (2, 1)


# --- What the broker wants of it ---------------------------------------------------------------


@pytest.mark.parametrize("wish", ["resend", "keep"])
def test_what_is_asked_for_too_early_is_asked_for_again(drawn, wish):
    drawn.viewed(**{wish: (FIRST,)})
    assert drawn.deeds() == []
    drawn.encoded("first")
    assert drawn.outcome().image is not None
    drawn.viewed(**{wish: (FIRST,)})
    assert bool(drawn.sent(Outcome)) == (wish == "resend")
    assert drawn.session.held.kept == (wish == "keep")


def test_what_is_released_is_dropped_and_not_forgotten(drawn):
    drawn.viewed(release=(FIRST,))
    drawn.encoded("first")
    assert drawn.deeds() == []
    drawn.after(1.1)
    assert drawn.reports()[-1].held == ()
    drawn.start("first")
    assert drawn.deeds() == [], "it has ended"


def test_a_cancel_ends_it_at_once(both):
    both.viewed(cancel=(FIRST,))
    assert both.cancelled() == [], "the engine has nothing to stop"
    assert both.outcome().failure.code is FailureCode.CANCELLED
    both.encoded("first")
    assert both.deeds() == []
    assert both.session.slot.execution_id == SECOND


def test_a_job_that_was_to_stop_ends_as_that_with_its_pixels(both):
    both.viewed(cancel=(SECOND,))
    both.drawn("second")
    assert both.outcome().failure.code is FailureCode.CANCELLED
    assert both.next_report().held[0] == UNREADY
    both.encoded("second")
    assert both.deeds() == []


# --- The engine dies or hangs ------------------------------------------------------------------


def test_the_death_of_the_engine_is_no_crash_of_what_was_drawn(both):
    both.exited()
    first, second = both.sent(Outcome)
    assert (first.execution_id, first.failure.code, first.crashes) == (FIRST, FailureCode.WORKER_LOST, 0)
    assert first.failure.code in RETRYABLE_FAILURES
    assert "before the PNG was made" in first.failure.detail
    assert (second.execution_id, second.failure.code) == (SECOND, FailureCode.ENGINE_CRASHED)
    assert second.crashes == 1
    assert both.started() == [2]


def test_a_png_that_does_not_come_costs_the_engine_and_not_the_next_job(both):
    for _ in range(2):
        both.after(3.4)
        both.progress(1, execution="second")
    both.after(0.3)
    assert both.killed() == [1]
    both.exited("killed by SIGKILL")
    assert [outcome.failure.code for outcome in both.sent(Outcome)] == 2 * [FailureCode.WORKER_LOST]
    assert [outcome.crashes for outcome in both.sent(Outcome)] == [0, 0]


def test_a_png_has_the_time_of_the_decoding(drawn):
    drawn.after(drawn.limits.decode_s - 0.1)
    assert drawn.killed() == []
    drawn.after(0.2)
    assert drawn.killed() == [1]
    drawn.encoded("first")
    assert drawn.outcome().image is not None, "it came after all"


def test_two_images_that_become_no_png_are_a_quarantine():
    worker = SessionDriver()
    worker.become_ready()
    for digest in ("this", "that"):
        worker.start_with(digest, digest)
        worker.drawn(digest)
        worker.after(worker.limits.decode_s + 0.1)
        worker.exited("killed by SIGKILL")
        if digest == "this":
            worker.wait_for_engine()
            worker.ready()
    assert worker.report().phase is WorkerPhase.QUARANTINED


# --- Drain -------------------------------------------------------------------------------------


def test_a_draining_worker_waits_for_the_png(drawn):
    drawn.drain()
    drawn.after(2.5)
    assert not drawn.left()
    drawn.encoded("first")
    assert not drawn.left()
    drawn.viewed(release=(FIRST,))
    assert drawn.left()


def test_a_draining_worker_does_not_wait_for_a_png_that_nobody_wants(drawn):
    drawn.drain()
    drawn.viewed(release=(FIRST,))
    assert drawn.left()


# --- Out of memory -----------------------------------------------------------------------------


def test_an_engine_that_ran_out_of_memory_is_replaced_at_once(both):
    both.failed(FailureCode.OUT_OF_MEMORY, "what the error says", execution="second")
    assert (both.outcome().failure.code, both.outcome().crashes) == (FailureCode.OUT_OF_MEMORY, 0)
    assert both.killed() == [1]
    assert (both.report().phase, both.report().activity) == (WorkerPhase.LOADING, "out of memory")
    assert isinstance(both.session.slot, Free)
    both.exited("killed by SIGKILL")
    assert both.started() == [2]


def test_running_out_of_memory_is_no_quarantine(drawn):
    for execution in range(4):
        drawn.start_with(f"digest {execution}", execution)
        drawn.failed(FailureCode.OUT_OF_MEMORY, execution=execution)
        drawn.exited("killed by SIGKILL")
        assert drawn.started(), "at once"
        drawn.ready()


def test_a_cancelled_job_that_ran_out_of_memory_costs_the_engine_all_the_same(both):
    both.progress(4, JobPhase.DECODE, execution="second")
    both.viewed(cancel=(SECOND,))
    both.failed(FailureCode.OUT_OF_MEMORY, execution="second")
    assert both.outcome().failure.code is FailureCode.CANCELLED
    assert both.killed() == [1]


def test_a_draining_worker_without_memory_starts_no_engine(both):
    both.drain()
    both.failed(FailureCode.OUT_OF_MEMORY, execution="second")
    both.exited("killed by SIGKILL")
    assert both.started() == []
