"""The engine process dies, hangs or fails in the middle of a job: the worker replaces it and goes on."""

import signal
from collections.abc import Iterator

import grpc
import psutil
import pytest
from processes.stack import SLACK_S, Drawn, Stack, content_of

from gpu_worker.engines.fake import prompt_digest

STEP_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, time_scale: float) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), time_scale=time_scale) as running:
        yield running.start(fake_faults=True, step_limit_s=STEP_LIMIT_S)


def test_a_killed_engine_is_replaced(stack: Stack) -> None:
    restarts = stack.until_state("worker-1", "ready").engine_restarts
    with stack.held():
        call = stack.client().begin("one")
        stack.until_running()
        victim = stack.workers["worker-1"].engine()
        victim.send_signal(signal.SIGKILL)
    outcome = call.outcome(limit_s=stack.timing.peer_lost_s + stack.timing.retry_wait_s + SLACK_S)
    if isinstance(outcome, Drawn):
        content = content_of(outcome)
        assert content.prompt_digest == prompt_digest("one")
    else:
        assert (outcome.code, outcome.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_CRASHED")
    assert stack.until_state("worker-1", "ready").engine_restarts == restarts + 1
    assert stack.workers["worker-1"].engine().pid != victim.pid
    assert content_of(stack.client().draw("two")).prompt_digest == prompt_digest("two")


def test_a_hanging_engine_is_replaced(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    before = stack.workers["worker-1"].engine().pid
    refusal = stack.client().begin("!hang@2").refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "POISON_JOB")
    assert refusal.attempts == 2, "once more, in case it was the engine"
    stack.until_state("worker-1", "ready")
    assert not psutil.pid_exists(before)
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")


@pytest.mark.parametrize(
    ("fault", "code", "reason", "attempts"),
    [
        ("!error@2", grpc.StatusCode.INTERNAL, "ENGINE_ERROR", 1),
        ("!nonfinite@2", grpc.StatusCode.INTERNAL, "NON_FINITE_IMAGE", 1),
    ],
)
def test_an_engine_survives_its_own_errors(
    stack: Stack, fault: str, code: grpc.StatusCode, reason: str, attempts: int
) -> None:
    stack.until_state("worker-1", "ready")
    before = stack.workers["worker-1"].engine().pid
    failed = stack.metrics().failed
    refusal = stack.client().begin(fault, steps=3).refusal()
    assert (refusal.code, refusal.reason, refusal.attempts) == (code, reason, attempts)
    assert refusal.retry_after_s is None
    assert "fake" not in refusal.text, "the engine's own words do not reach the client"
    assert stack.metrics().failed == failed + 1
    stack.until_state("worker-1", "ready")
    assert stack.workers["worker-1"].engine().pid == before


def test_an_engine_that_runs_out_of_memory_is_replaced_and_the_job_to_blame_for_nothing(stack: Stack) -> None:
    restarts = stack.until_state("worker-1", "ready").engine_restarts
    before = stack.workers["worker-1"].engine().pid
    refusal = stack.client().begin("!oom@2", steps=3).refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert refusal.attempts == 3, "it is no poison job"
    row = stack.until_state("worker-1", "ready")
    assert row.engine_restarts == restarts + 3
    assert not psutil.pid_exists(before)
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")


def test_a_job_that_crashes_a_worker_runs_again_on_another(stack: Stack) -> None:
    before = stack.metrics()
    # Idle for less long than the other one, which therefore goes first.
    sound = stack.start_worker("sound", fake_faults=False)
    stack.until_state("sound", "ready")
    image = stack.client().draw("!crash@3", steps=4, seed=7)
    content = content_of(image)
    assert (content.prompt_digest, content.seed) == (prompt_digest("!crash@3"), 7)
    job_id = content.job_id.hex()
    stack.broker.until_event("attempt failed", job_id=job_id, worker_id="worker-1", code="ENGINE_CRASHED")
    stack.broker.until_event("job completed", job_id=job_id, worker_id="sound", attempt=2)
    row = stack.until_state("worker-1", "ready")
    assert row.engine_restarts == before.workers[0].engine_restarts + 1
    after = stack.metrics()
    assert (after.completed, after.failed) == (before.completed + 1, before.failed)
    sound.send(signal.SIGTERM)
    assert sound.ends() == 0
    assert stack.row("sound") is None, "a worker that has left is not lost"


def test_a_worker_whose_engine_dies_on_two_jobs_is_quarantined(stack: Stack) -> None:
    stack.start_worker("broken", fake_faults=True)
    stack.until_state("broken", "ready")
    stack.workers["worker-1"].send(signal.SIGTERM)
    assert stack.workers["worker-1"].ends() == 0
    for prompt in ("!poisoned@1 one", "!crash@1 two"):
        stack.until_state("broken", "ready")
        assert stack.client().begin(prompt, steps=2).refusal().reason in {
            "POISON_JOB", "DEVICE_POISONED", "ENGINE_CRASHED"
        }  # fmt: skip
    stack.until_state("broken", "quarantined")
    refusal = stack.client().begin().refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKERS_NOT_READY")
    assert "quarantined" in refusal.text
