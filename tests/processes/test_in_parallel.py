"""Several callers and workers at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from processes.stack import KEYS, Refusal, Stack, content_of, until

from gpu_worker.engines.fake import prompt_digest

ROUNDS = 5
STEP_S = 0.05


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack")) as running:
        yield running.start(workers=2, fake_step_s=STEP_S)


def test_two_callers_on_two_workers_each_get_their_own_images(stack: Stack) -> None:
    with stack.held():
        first = stack.client(KEYS[0]).begin("both at once")
        busy = stack.until_running().worker_id
        second = stack.client(KEYS[1]).begin("both at once, too")
        (other,) = stack.workers.keys() - {busy}
        stack.until_running(worker=other)
    first_job = content_of(first.image())
    second_job = content_of(second.image())
    lines = stack.broker.events("job dispatched")
    places = {line["job_id"]: line["worker_id"] for line in lines}
    assert places[first_job.job_id.hex()] != places[second_job.job_id.hex()]


def test_no_image_goes_to_another_caller(stack: Stack) -> None:
    def draw_all(key: str) -> None:
        client = stack.client(key)
        for number in range(1, ROUNDS + 1):
            prompt = f"{key}, image {number}"
            image = client.draw(
                prompt, steps=number, height=50 + number, width=60 + len(key), seed=number, guidance=1.5
            )
            content = content_of(image)
            assert content.prompt_digest == prompt_digest(prompt)
            assert (content.height, content.width) == (50 + number, 60 + len(key))
            assert (content.seed, content.steps, content.guidance) == (number, number, 1.5)
            assert image.seed == number

    with ThreadPoolExecutor(len(KEYS)) as pool:
        for done in [pool.submit(draw_all, key) for key in KEYS]:
            done.result()


def test_a_key_that_draws_may_not_draw_twice_while_another_worker_is_idle(stack: Stack) -> None:
    with stack.held():
        call = stack.client(KEYS[0]).begin(steps=20)
        stack.until_running()
        refusal = stack.client(KEYS[0]).begin().refusal()
        other = stack.client(KEYS[1]).begin()
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT_BUSY")
    assert other.image().image_png
    assert call.image().image_png
    assert stack.metrics().rejected == {"CLIENT_BUSY": 1}


def test_a_deadline_that_cannot_be_met_is_refused_at_once(stack: Stack) -> None:
    def refused() -> Refusal | None:
        """On a machine that stands still for so long, the deadline may pass before anybody has judged it."""
        stack.client(KEYS[1]).draw(steps=20)  # The broker learns what it takes.
        outcome = stack.client(KEYS[0]).begin(steps=20, deadline_s=15 * STEP_S).outcome()
        assert isinstance(outcome, Refusal), "there is an image"
        return outcome if outcome.reason == "DEADLINE_TOO_SHORT" else None

    refusal = until("the deadline is refused", refused)
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.retry_after_s is None, "waiting cannot help"
