"""Two brokers: the second one takes over whatever becomes of the first, and nothing is drawn twice."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes.stack import KEYS, Component, Drawn, OpenCall, Refusal, Stack, content_of, until

from gpu_worker.engines.fake import prompt_digest


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), brokers=2, time_scale=0.5) as running:
        yield running.start(workers=2)


@pytest.fixture(autouse=True)
def both_brokers_serve(stack: Stack) -> None:
    until_states(stack, "live", "live")
    for worker in stack.workers:
        stack.until_state(worker, "ready")


def until_states(stack: Stack, *states: str) -> None:
    def look() -> bool:
        return [broker.state for broker in stack.metrics().brokers] == list(states)

    until(f"the brokers are {states}", look)


def begin_held(stack: Stack, prompt: str) -> tuple[OpenCall, bytes]:
    """A call that the first broker has given to a worker, and its execution."""
    call = stack.client().begin(prompt, width=80)
    running = stack.until_running()
    started = stack.broker.until_event("job dispatched", job_id=running.job_id)
    return call, bytes.fromhex(started["execution_id"])


def test_the_first_broker_is_killed_in_the_middle_of_a_job_and_never_missed(stack: Stack) -> None:
    first, second = stack.brokers
    begun = stack.executions()
    with stack.held():
        call, execution_id = begin_held(stack, "a fjord")
        first.kill()
        second.until_event("execution adopted", execution_id=execution_id.hex())
        until_states(stack, "silent", "live")
        assert stack.until_running().job_id
    content = content_of(call.image())
    assert (content.prompt_digest, content.execution_id) == (prompt_digest("a fjord"), execution_id)
    assert stack.executions() == begun + 1
    assert content_of(stack.client().draw("a skerry")).prompt_digest == prompt_digest("a skerry")
    assert second.events("job completed")
    first.start()
    until_states(stack, "live", "live")
    assert [broker.gets_calls for broker in stack.metrics().brokers] == [True, False]


def test_a_broker_that_was_frozen_finds_its_calls_elsewhere_and_lets_them_go(stack: Stack) -> None:
    first, second = stack.brokers
    begun = stack.executions()
    with stack.held():
        call, execution_id = begin_held(stack, "a dune")
        first.freeze()
        second.until_event("execution adopted", execution_id=execution_id.hex())
        first.thaw()
        first.until_event("job moved to another broker")
        until_states(stack, "live", "live")
        assert stack.until_running().job_id, "neither has cancelled it"
    assert content_of(call.image()).execution_id == execution_id
    assert stack.executions() == begun + 1
    assert not first.events("outcome dropped")


def test_each_broker_is_restarted_in_the_middle_of_a_job(stack: Stack) -> None:
    begun = stack.executions()
    with stack.held():
        call, execution_id = begin_held(stack, "a glacier")
        for broker, other in zip(stack.brokers, reversed(stack.brokers), strict=True):
            restart(stack, broker)
            other.until_event("execution adopted", execution_id=execution_id.hex())
    assert content_of(call.image()).execution_id == execution_id
    assert stack.executions() == begun + 1


def test_a_broker_ends_under_load_and_no_call_fails(stack: Stack) -> None:
    is_over = threading.Event()

    def calls_of(key: str) -> list[Drawn | Refusal]:
        client, ends = stack.client(key), []
        while not is_over.is_set():
            ends.append(client.begin(f"{key} {len(ends)}", steps=4).outcome())
        return ends

    with ThreadPoolExecutor() as pool:
        callers = [pool.submit(calls_of, key) for key in KEYS]
        restart(stack, stack.broker)
        is_over.set()
        ends = [end for caller in callers for end in caller.result()]
    assert [end for end in ends if isinstance(end, Refusal)] == []


def restart(stack: Stack, broker: Component) -> None:
    broker.send(signal.SIGTERM)
    assert broker.ends() == 0
    broker.start()
    until_states(stack, "live", "live")
