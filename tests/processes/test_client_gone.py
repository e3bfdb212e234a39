"""The caller leaves in the middle of a job: the drawing stops at the next step, and the worker is free."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from processes.stack import SLACK_S, Client, OpenCall, Stack, content_of

from gpu_worker.engines.fake import prompt_digest

STEPS = 20
DEADLINE_S = 5.0
"""Time enough for a loaded machine to begin the job and to show it."""
SAMPLE_CLIENT = Path(__file__).parents[2] / "examples" / "generate.py"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, time_scale: float) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), time_scale=time_scale) as running:
        running.frontend.settings |= {"keepalive_interval_s": 1, "keepalive_timeout_s": 0.5}
        yield running.start()


def assert_worker_was_freed(stack: Stack, job_id: str, *, cancelled: int) -> None:
    """By stopping the job, not by ending the engine, while it cannot get to its last step."""
    stack.until_state("worker-1", "ready")
    worker = stack.workers["worker-1"]
    assert worker.until_event("job ended", job_id=job_id)["outcome"] in {"CANCELLED", "DEADLINE_EXCEEDED"}
    metrics = stack.metrics()
    assert (metrics.in_flight, metrics.completed) == (0, cancelled - 1), "only the followers were completed"
    assert metrics.cancelled + metrics.failed == cancelled, "one that ran out of time has failed"
    assert metrics.workers[0].engine_restarts == 0


def assert_the_next_is_drawn(stack: Stack) -> None:
    content = content_of(stack.client("client2").draw("the next"))
    assert content.prompt_digest == prompt_digest("the next")


def cancel(_client: Client, call: OpenCall) -> None:
    call.cancel()
    assert call.refusal(limit_s=SLACK_S).code is grpc.StatusCode.CANCELLED


def disconnect(client: Client, _call: OpenCall) -> None:
    client.disconnect()


@pytest.mark.parametrize(("leave", "cancelled"), [(cancel, 1), (disconnect, 2)])
def test_a_call_that_ends_early(
    stack: Stack, leave: Callable[[Client, OpenCall], None], cancelled: int
) -> None:
    client = stack.client()
    with stack.held():
        call = client.begin(steps=STEPS)
        running = stack.until_running()
        assert (running.phase, running.step, running.steps) == ("step", 1, STEPS)
        leave(client, call)
        assert_worker_was_freed(stack, running.job_id, cancelled=cancelled)
    assert_the_next_is_drawn(stack)


def test_a_deadline_that_passes(stack: Stack) -> None:
    with stack.held():
        call = stack.client().begin(steps=STEPS, deadline_s=DEADLINE_S)
        running = stack.until_running()
        assert call.refusal(limit_s=DEADLINE_S + SLACK_S).code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert_worker_was_freed(stack, running.job_id, cancelled=3)
    assert_the_next_is_drawn(stack)


@pytest.mark.parametrize(("number", "cancelled"), [(signal.SIGKILL, 4), (signal.SIGSTOP, 5)])
def test_a_client_process_that_is_gone(
    stack: Stack, tmp_path: Path, number: signal.Signals, cancelled: int
) -> None:
    command = [sys.executable, str(SAMPLE_CLIENT), stack.address, "client1"]
    with stack.held(), subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as client:
        try:
            running = stack.until_running()
            os.kill(client.pid, number)
            # A frozen one keeps its connection: it is found out by asking.
            assert_worker_was_freed(stack, running.job_id, cancelled=cancelled)
        finally:
            client.kill()
    assert_the_next_is_drawn(stack)
