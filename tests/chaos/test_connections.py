"""What lies between peers and their broker delays, repeats and breaks off; strangers claim addresses."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import zmq
from chaos.cable import Cable
from chaos.middleman import Middleman
from chaos.running_job import RunningJob
from processes.stack import KEYS, Client, Drawn, Stack, content_of, free_ports, until
from samples.wire import worker_report

from gpu_worker.engines.fake import prompt_digest
from proto.codec import decode, encode
from proto.messages import WorkerView

EACH = 6
"""Images that each caller wants."""
LARGE = {"height": 512, "width": 512}
"""Of some 400 kB."""


def take_place(stack: Stack, setting: str) -> tuple[str, str]:
    """Where peers look for their broker, and where it listens instead from its start on."""
    expected = str(stack.broker.settings[setting])
    stack.broker.settings[setting] = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    return expected, str(stack.broker.settings[setting])


@contextmanager
def middleman(stack: Stack, role: str, longest_delay_s: float = 0.0) -> Iterator[Middleman]:
    expected, real = take_place(stack, f"{role}_endpoint")
    with Middleman(expected, real, longest_delay_s=longest_delay_s) as between:
        yield between


def test_row_21_messages_that_are_late_and_overtake_each_other(stack: Stack) -> None:
    delay_s = stack.timing.heartbeat_interval_s / 2

    def image_of(client: Client, prompt: str) -> Drawn:
        """A caller's last job may still be ending."""

        def look() -> Drawn | None:
            outcome = client.begin(prompt).outcome()
            return outcome if isinstance(outcome, Drawn) else None

        return until(f"{prompt} is drawn", look)

    def draw_all(key: str) -> None:
        client = stack.client(key)
        for number in range(EACH):
            prompt = f"{key}, picture {number}"
            client.begin("not wanted", steps=20).cancel()
            assert content_of(image_of(client, prompt)).prompt_digest == prompt_digest(prompt)

    with middleman(stack, "workers", delay_s) as one, middleman(stack, "frontends", delay_s) as other:
        stack.start(workers=2)
        with ThreadPoolExecutor(len(KEYS)) as pool:
            for done in [pool.submit(draw_all, key) for key in KEYS]:
                done.result()
        started = [
            line["job_id"] for worker in stack.workers.values() for line in worker.events("job started")
        ]
        assert len(set(started)) == len(started), "a job was drawn twice"
        assert one.overtaken > 0
        assert other.overtaken > 0
        stack.draws()


def test_row_22_a_connection_that_breaks_within_a_frame(stack: Stack) -> None:
    expected, real = take_place(stack, "workers_endpoint")
    ports = [int(endpoint.rpartition(":")[2]) for endpoint in (expected, real)]
    with Cable(*ports) as cable:
        stack.start()
        for breaks, size_bytes in enumerate((10, 1_000, 100_000), start=1):
            with stack.held():
                job = RunningJob.begin(stack, f"a weir, {size_bytes}", **LARGE)
            cable.break_after(size_bytes)
            job.first_image()
            until("it broke", lambda breaks=breaks: cable.breaks == breaks)  # type: ignore[misc]
            stack.until_state("worker-1", "ready")
        assert stack.executions() == cable.breaks
        stack.draws()


@pytest.mark.parametrize("role", ["workers", "frontends"])
def test_row_25_whatever_was_said_is_said_again(stack: Stack, role: str) -> None:
    with middleman(stack, role) as between:
        stack.start(workers=2)
        stack.draws()
        begun, before = stack.executions(), stack.metrics()
        delivered = between.delivered
        with stack.held():
            job = RunningJob.begin(stack, "a mole")
            between.say_all_again()
            until("all was said again", lambda: between.has_said_all)
            more = between.delivered + 2
            until("peers go on", lambda: between.delivered > more)
            assert stack.until_running().job_id == job.job_id
        job.first_image()
        stack.draws()
        after = stack.metrics()
    assert delivered > 0
    assert (after.completed, after.failed) == (before.completed + 2, before.failed)
    if role == "workers":
        assert stack.executions() == begun + 2, "an old START began nothing"


def test_row_24_a_stranger_that_claims_the_address_of_another(service: Stack) -> None:
    endpoint = str(service.broker.settings["workers_endpoint"])
    with service.held(), zmq.Context() as context:
        job = RunningJob.begin(service, "a jetty")
        claimed = [b"mine", b"mine", *(bytes((0, 0x6B, 0x8B, 0x45, 0x67 + n)) for n in range(4))]
        strangers = [context.socket(zmq.DEALER) for _ in claimed]
        for number, (stranger, identity) in enumerate(zip(strangers, claimed, strict=True)):
            stranger.set(zmq.LINGER, 0)
            stranger.set(zmq.ROUTING_ID, identity)
            stranger.connect(endpoint)
            stranger.send_multipart(encode(worker_report(worker_id=f"stranger-{number}")))
        assert isinstance(decode(strangers[0].recv_multipart()), WorkerView)
        assert service.until_running().job_id == job.job_id
        for stranger in strangers:
            stranger.close()
    job.first_image()
    assert service.executions() == 1
    service.draws()
