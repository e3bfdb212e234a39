"""What `systemctl status` shows of a worker, and when its watchdog must not be fed."""

import pytest
from samples.session_driver import SessionDriver

from gpu_worker.events import TimerFired
from gpu_worker.status_text import status_text
from proto.failures import FailureCode
from proto.messages import JobPhase


@pytest.fixture
def worker() -> SessionDriver:
    return SessionDriver()


def test_from_the_start_to_the_end(worker):
    assert status_text(worker.session, worker.now) == "no engine: not started yet"
    worker.tell(TimerFired())
    worker.loading("reading weights", 40)
    assert status_text(worker.session, worker.now) == "loading: reading weights, 40 %"
    worker.ready()
    worker.viewed()
    assert status_text(worker.session, worker.now) == "ready with fake on none; idle"
    worker.start()
    assert status_text(worker.session, worker.now) == "ready with fake on none; encoding a prompt"
    worker.progress(3)
    steps = worker.session.slot.job.parameters.steps
    assert status_text(worker.session, worker.now) == f"ready with fake on none; drawing, step 3 of {steps}"
    worker.progress(steps, JobPhase.DECODE)
    assert status_text(worker.session, worker.now) == "ready with fake on none; decoding an image"
    worker.drain()
    assert status_text(worker.session, worker.now) == "draining: decoding an image; 0 outcomes to hand over"
    worker.drawn()
    assert status_text(worker.session, worker.now) == "draining: making a PNG; 0 outcomes to hand over"
    worker.encoded()
    assert status_text(worker.session, worker.now) == "draining: 1 outcomes to hand over"


def test_an_engine_that_died(worker):
    worker.run_job()
    worker.after(worker.limits.step_s)
    assert status_text(worker.session, worker.now).startswith(
        "engine process killed: no progress in phase text for 5 s"
    )
    worker.exited()
    worker.exited("segmentation fault")
    assert status_text(worker.session, worker.now) == "no engine: segmentation fault"


@pytest.mark.parametrize("waiting_s", [59.0, 61.0])
def test_it_is_stuck_when_a_killed_engine_process_does_not_end(worker, waiting_s):
    worker.run_job()
    worker.after(worker.limits.step_s)
    killed_at = worker.session.engine.state.since
    worker.after(killed_at + waiting_s - worker.now)
    assert worker.session.is_stuck(worker.now) == (waiting_s > worker.limits.kill_s)
    worker.exited()
    assert not worker.session.is_stuck(worker.now)


def test_it_is_not_stuck_while_it_can_help_itself(worker):
    worker.tell(TimerFired())
    worker.after(worker.limits.load_s - 1)
    assert not worker.session.is_stuck(worker.now), "a long loading"
    worker.ready()
    worker.start()
    worker.failed(FailureCode.OUT_OF_MEMORY)
    worker.exited()
    worker.after(worker.limits.load_s - 1)
    assert not worker.session.is_stuck(worker.now)


def test_brokers_that_are_not_heard():
    worker = SessionDriver()
    worker.become_ready()
    worker.after(worker.timing.broker_silent_s, answered=False)
    assert status_text(worker.session, worker.now) == "ready with fake on none; idle; no broker answers"
