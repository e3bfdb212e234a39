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

STEP_S = 0.3
STEPS = 20
SAMPLE_CLIENT = Path(__file__).parents[2] / "examples" / "generate.py"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        running.frontend.settings |= {"keepalive_interval_s": 1, "keepalive_timeout_s": 0.5}
        yield running.start(fake_step_s=STEP_S)


def assert_worker_was_freed(stack: Stack, job_id: str, *, cancelled: int, limit_s: float = SLACK_S) -> None:
    """By stopping the job, not by ending the engine, long before its last step."""
    stack.until_state("worker-1", "ready", limit_s=STEP_S + limit_s)
    worker = stack.workers["worker-1"]
    assert worker.until_event("job ended", job_id=job_id)["outcome"] in {"CANCELLED", "DEADLINE_EXCEEDED"}
    metrics = stack.metrics()
    assert (metrics.in_flight, metrics.completed) == (0, cancelled - 1), "only the followers were completed"
    assert metrics.cancelled + metrics.failed == cancelled, "one that ran out of time has failed"
    assert metrics.workers[0].engine_restarts == 0
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
    call = client.begin(steps=STEPS)
    running = stack.until_running()
    assert (running.phase, running.steps) == ("step", STEPS)
    leave(client, call)
    assert_worker_was_freed(stack, running.job_id, cancelled=cancelled)


def test_a_deadline_that_passes(stack: Stack) -> None:
    call = stack.client().begin(steps=STEPS, deadline_s=4 * STEP_S)
    running = stack.until_running()
    assert call.refusal(limit_s=4 * STEP_S + SLACK_S).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_worker_was_freed(stack, running.job_id, cancelled=3)


@pytest.mark.parametrize(("number", "cancelled"), [(signal.SIGKILL, 4), (signal.SIGSTOP, 5)])
def test_a_client_process_that_is_gone(
    stack: Stack, tmp_path: Path, number: signal.Signals, cancelled: int
) -> None:
    command = [sys.executable, str(SAMPLE_CLIENT), stack.address, "client1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as client:
        try:
            running = stack.until_running()
            os.kill(client.pid, number)
            # A frozen one keeps its connection: it is found out by asking.
            assert_worker_was_freed(stack, running.job_id, cancelled=cancelled, limit_s=1.5 + SLACK_S)
        finally:
            client.kill()
