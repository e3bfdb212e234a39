"""The broker ends in the middle of a job, and comes back: it knows nothing, and nothing is lost."""

import signal
from collections.abc import Callable, Iterator

import grpc
import pytest
from processes.stack import SLACK_S, Component, Stack, content_of, until

from gpu_worker.engines.fake import prompt_digest


@pytest.fixture(scope="module", params=["ipc", "tcp"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, time_scale: float
) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("stack"), over_tcp=request.param == "tcp", time_scale=time_scale
    ) as running:
        yield running.start()


def kill(broker: Component) -> None:
    broker.kill()


def ask_to_end(broker: Component) -> None:
    broker.send(signal.SIGTERM)
    assert broker.ends() == 0


@pytest.mark.parametrize("end", [kill, ask_to_end])
def test_a_restart_in_the_middle_of_a_job_costs_no_image(
    stack: Stack, end: Callable[[Component], None]
) -> None:
    stack.until_state("worker-1", "ready")
    engine = stack.workers["worker-1"].engine().pid
    prompt = f"a valley, {end.__name__}"
    with stack.held():
        call = stack.client().begin(prompt, seed=11, width=80)
        running = stack.until_running()
        started = stack.broker.until_event("job dispatched", job_id=running.job_id)
        end(stack.broker)
        stack.broker.start()
        # It is still the same drawing, and not cancelled once the broker has made up its mind.
        stack.broker.until_event("execution adopted", execution_id=started["execution_id"])
        stack.broker.until_event("rebuilt")
        assert stack.until_running().job_id == running.job_id
    content = content_of(call.image())
    assert (content.prompt_digest, content.seed, content.width) == (prompt_digest(prompt), 11, 80)
    assert content.execution_id.hex() == started["execution_id"], "drawn once"
    assert stack.workers["worker-1"].engine().pid == engine
    stack.until_state("worker-1", "ready")
    metrics = stack.metrics()
    assert (metrics.in_flight, metrics.queued, metrics.completed, metrics.failed) == (0, 0, 1, 0)


def test_what_is_finished_without_a_broker_is_delivered_by_the_next(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    with stack.held():
        call = stack.client().begin("a moor", seed=12)
        running = stack.until_running()
        started = stack.broker.until_event("job dispatched", job_id=running.job_id)
        stack.broker.kill()
    stack.workers["worker-1"].until_event("job ended", execution_id=started["execution_id"])
    assert call.is_open
    stack.broker.start()
    assert content_of(call.image()).execution_id.hex() == started["execution_id"]


def test_a_new_call_waits_until_a_broker_knows_what_is_going_on(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    with stack.held():
        call = stack.client("client1").begin("an old one")
        running = stack.until_running()
        stack.broker.kill()
        stack.broker.start()
        stack.until_the_broker_is_heard()
        refusal = stack.client("client2").begin("a new one").refusal()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ALL_WORKERS_BUSY")
    assert content_of(call.image()).job_id.hex() == running.job_id


def test_without_a_broker_calls_are_refused_at_once(stack: Stack) -> None:
    stack.until_state("worker-1", "ready")
    stack.broker.kill()
    until("the frontend misses the broker", lambda: stack.get("/readyz")[0] == 503)
    refusal = stack.client().begin().refusal(limit_s=SLACK_S)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNREACHABLE")
    assert refusal.retry_after_s is not None
    status, document = stack.get("/metrics")
    assert status == 200
    assert (document["broker_alive"], document["worker_alive"], document["grpc_alive"]) == (
        False,
        False,
        True,
    )
    assert document["age_s"] > 0
    assert [row["worker_id"] for row in document["workers"]] == ["worker-1"], "the last known picture"
    assert stack.get("/healthz")[0] == 200
    assert stack.client().ping() == "Pong"
    stack.broker.start()
    stack.until_state("worker-1", "ready")
    assert content_of(stack.client().draw("after")).prompt_digest == prompt_digest("after")
