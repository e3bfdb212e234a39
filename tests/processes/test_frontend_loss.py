"""The frontend ends in the middle of a job."""

import signal
from collections.abc import Iterator

import grpc
import pytest
from processes.stack import SLACK_S, Stack, content_of, until

from gpu_worker.engines.fake import prompt_digest


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, time_scale: float) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), time_scale=time_scale) as running:
        yield running.start()


def test_a_killed_frontend_is_a_disconnect_of_all_its_callers(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    with stack.held():
        call = stack.client().begin()
        job_id = stack.until_running().job_id
        stack.frontend.kill()
        assert call.refusal(limit_s=SLACK_S).code is grpc.StatusCode.UNAVAILABLE
        stack.start_frontend()
        ended = stack.workers["worker-1"].until_event("job ended", job_id=job_id)
    assert ended["outcome"] == "CANCELLED"
    stack.until_state("worker-1", "ready")
    metrics = stack.metrics()
    assert (metrics.in_flight, metrics.cancelled, metrics.completed) == (0, 1, 0)
    content = content_of(stack.client().draw("after"))
    assert content.prompt_digest == prompt_digest("after")


def test_a_repeat_after_a_kill_joins_what_is_being_drawn(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    with stack.held():
        lost = stack.client().begin("a pond", idempotency_key="pond-1")
        job_id = stack.until_running().job_id
        stack.frontend.kill()
        assert lost.refusal(limit_s=SLACK_S).code is grpc.StatusCode.UNAVAILABLE
        stack.start_frontend()
        until("the frontend has found the broker", lambda: stack.get("/readyz")[0] == 200)
        repeat = stack.client().begin("a pond", idempotency_key="pond-1")
        stack.broker.until_event("frontend lost")
        assert stack.until_running().job_id == job_id
    image = repeat.image()
    assert content_of(image).job_id.hex() == job_id
    stack.frontend.kill()
    stack.start_frontend()
    until("the frontend has found the broker", lambda: stack.get("/readyz")[0] == 200)
    again = stack.client().draw("a pond", steps=20, idempotency_key="pond-1")
    assert again.image_png == image.image_png
    assert again.seed == image.seed
    other = stack.client().begin("another pond", idempotency_key="pond-1").refusal()
    assert (other.code, other.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "IDEMPOTENCY_MISMATCH")


def test_a_detached_job_is_drawn_to_its_end(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    client = stack.client()
    with stack.held():
        detached = client.begin("a lake", idempotency_key="lake-1", detach=True)
        job_id = stack.until_running().job_id
        client.disconnect()
        assert detached.refusal().code is grpc.StatusCode.CANCELLED
        until("its call has ended", lambda: stack.frontend.events("call ended")[-1].get("job_id") == job_id)
    ended = stack.workers["worker-1"].until_event("job ended", job_id=job_id)
    assert ended["outcome"] == "image"
    image = stack.client().draw("a lake", steps=20, idempotency_key="lake-1")
    assert content_of(image).job_id.hex() == job_id


def test_a_frontend_that_is_asked_to_end_answers_first(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    client, other = stack.client(), stack.client("client2")
    assert other.ping() == "Pong"
    with stack.held():
        call = client.begin("the last one", steps=8)
        stack.until_running()
        stack.frontend.send(signal.SIGTERM)
        stack.frontend.until_event("draining")
        until("it takes no job any more", lambda: stack.get("/healthz")[0] == 503)
        refusal = other.begin().refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "FRONTEND_DRAINING")
    content = content_of(call.image())
    assert content.prompt_digest == prompt_digest("the last one")
    assert stack.frontend.ends() == 0
    stack.broker.until_event("frontend left")
    stack.start_frontend()
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")


def test_a_call_that_outlasts_the_drain_is_told_why(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    stack.frontend.send(signal.SIGTERM)
    assert stack.frontend.ends() == 0
    stack.frontend.settings["drain_s"] = 0.3
    stack.start_frontend()
    stack.until_state("worker-1", "ready")
    with stack.held():
        call = stack.client().begin(steps=20)
        stack.until_running()
        stack.frontend.send(signal.SIGTERM)
        refusal = call.refusal()
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "FRONTEND_DRAINING")
    assert stack.frontend.ends() == 0
    del stack.frontend.settings["drain_s"]
    stack.start_frontend()


def test_a_second_signal_ends_a_draining_frontend_at_once(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    with stack.held():
        call = stack.client().begin()
        stack.until_running()
        stack.frontend.send(signal.SIGTERM)
        stack.frontend.until_event("draining")
        stack.frontend.send(signal.SIGTERM)
        assert stack.frontend.ends(limit_s=SLACK_S) == -signal.SIGTERM
        assert call.refusal(limit_s=SLACK_S).code is grpc.StatusCode.UNAVAILABLE
    stack.start_frontend()
    stack.until_state("worker-1", "ready")
