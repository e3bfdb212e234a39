"""The whole worker is killed, or freezes, in the middle of a job."""

import signal
from collections.abc import Iterator

import grpc
import pytest
from processes.stack import SLACK_S, Stack, content_of, processes_of, until

from gpu_worker.engines.fake import prompt_digest


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, time_scale: float) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), time_scale=time_scale) as running:
        yield running.start()


def lost_limit_s(stack: Stack) -> float:
    """For the end of a job whose worker is silent, where no other worker takes it."""
    return stack.timing.peer_lost_s + stack.timing.retry_wait_s + SLACK_S


def test_a_killed_worker_costs_the_call_and_nothing_else(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    worker = stack.workers["worker-1"]
    with stack.held():
        call = stack.client().begin()
        stack.until_running()
        worker.kill()
    until("its engine is gone too", lambda: not processes_of(worker.sessions))
    refusal = call.refusal(limit_s=lost_limit_s(stack))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKER_LOST")
    row = stack.until_state("worker-1", "lost")
    assert (row.job_id, row.step) == ("", 0)
    metrics = stack.metrics()
    assert (metrics.in_flight, metrics.queued, metrics.failed) == (0, 0, 1)
    status, document = stack.get("/metrics")
    assert status == 200
    assert document["worker_alive"] is False
    assert [row["state"] for row in document["workers"]] == ["lost"]
    assert stack.get("/readyz")[0] == 503
    refusal = stack.client().begin().refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKERS")

    stack.start_worker("worker-1")
    stack.until_state("worker-1", "ready")
    assert content_of(stack.client().draw("again")).prompt_digest == prompt_digest("again")
    assert len(stack.metrics().workers) == 1, "its successor has taken its place in the metrics"
    until("ready again", lambda: stack.get("/readyz")[0] == 200)


def test_the_job_of_a_killed_worker_runs_again_on_another(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    stack.start_worker("worker-2")
    stack.until_state("worker-2", "ready")
    with stack.held():
        call = stack.client().begin("a harbour", seed=5)
        busy = stack.until_running()
        assert busy.worker_id == "worker-1", "the one that was idle for longer"
        stack.workers["worker-1"].kill()
    content = content_of(call.image())
    assert (content.prompt_digest, content.seed) == (prompt_digest("a harbour"), 5)
    assert content.job_id.hex() == busy.job_id
    stack.broker.until_event("job completed", job_id=busy.job_id, worker_id="worker-2", attempt=2)
    stack.start_worker("worker-1")
    stack.until_state("worker-1", "ready")


def test_what_a_frozen_worker_finishes_too_late_is_nobodys(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    stack.until_state("worker-2", "ready")
    engines = {name: worker.engine().pid for name, worker in stack.workers.items()}
    completed = stack.metrics().completed
    with stack.held():
        call = stack.client().begin("a bridge")
        busy = stack.until_running()
        frozen = stack.workers[busy.worker_id]
        frozen.freeze()
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("a bridge")
    stack.until_state(busy.worker_id, "lost")
    frozen.thaw()
    stack.until_state(busy.worker_id, "ready")
    assert stack.metrics().completed == completed + 1, "delivered once"
    assert frozen.engine().pid == engines[busy.worker_id], "the same process serves again"
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")


def test_a_frozen_worker_alone_gives_unavailable_in_time(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    stack.workers["worker-2"].kill()
    stack.until_state("worker-2", "lost")
    with stack.held():
        call = stack.client().begin()
        stack.until_running(worker="worker-1")
        stack.workers["worker-1"].freeze()
    refusal = call.refusal(limit_s=lost_limit_s(stack))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "WORKER_LOST")
    stack.workers["worker-1"].thaw()
    stack.until_state("worker-1", "ready")
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")


def test_a_killed_worker_takes_frozen_processes_with_it(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    worker = stack.workers["worker-1"]
    engine = worker.engine()
    forkserver = engine.parent()
    assert forkserver is not None
    assert forkserver.ppid() == worker.pid
    for process in (engine, forkserver):
        process.send_signal(signal.SIGSTOP)
    worker.kill()
    until("none of its processes is left", lambda: not processes_of(worker.sessions))
