"""SIGTERM, once and twice, and what is left of a process afterwards."""

import signal
from collections.abc import Iterator

import pytest
from processes.stack import SLACK_S, Stack, content_of, processes_of, until

from gpu_worker.engines.fake import prompt_digest


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        yield running.start()


def test_a_worker_finishes_its_job_first(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    worker = stack.workers["worker-1"]
    with stack.held():
        call = stack.client().begin("the last one")
        stack.until_running()
        worker.send(signal.SIGTERM)
        stack.until_state("worker-1", "draining")
        refusal = stack.client("client2").begin().refusal()
    assert refusal.reason == "WORKERS_NOT_READY"
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("the last one")
    assert worker.ends() == 0
    until("none of its processes is left", lambda: not processes_of(worker.sessions))
    assert stack.row("worker-1") is None, "a worker that has left is not lost"
    assert stack.metrics().completed == 1
    stack.start_worker("worker-1")


def test_a_second_signal_ends_a_worker_at_once(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    worker = stack.workers["worker-1"]
    with stack.held():
        call = stack.client().begin()
        stack.until_running()
        worker.send(signal.SIGTERM)
        stack.until_state("worker-1", "draining")
        worker.send(signal.SIGTERM)
        assert worker.ends(limit_s=SLACK_S) == -signal.SIGTERM
    until("its engine is gone too", lambda: not processes_of(worker.sessions))
    assert call.refusal().reason == "WORKER_LOST"
    stack.start_worker("worker-1")


def test_idle_components_end_with_0_on_ctrl_c(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    for component in (stack.frontend, stack.workers["worker-1"], stack.broker):
        component.send(signal.SIGINT)
        assert component.ends(limit_s=1 + SLACK_S) == 0
        assert "Traceback" not in component.log_text()
    stack.until_no_process_is_left()
