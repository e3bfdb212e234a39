"""What only a model that means something can show: everybody gets the scene that they asked for.

The real stack with the embedded model; pictures are read back by the scorer of `training`.
"""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

import grpc
import numpy as np
import psutil
import pytest
from processes.stack import Client, Drawn, OpenCall, Refusal, Stack, until
from samples.pictures import names_of, pixels_of, seen_in

from training.captions import caption
from training.scenes import Scene, draw_scene
from training.scorer import Reading

pytestmark = pytest.mark.timeout(400)

CLIENTS: Final = ("one", "two", "three", "four")
LEAVER: Final = "five"
PROMPTS_A_CLIENT: Final = 50
PROMPTS_A_SIZE: Final = 8
MISFITS_MAX: Final = 20
"""Of 200 pictures: the model itself now and then takes a colour for another one."""
START_LIMIT_S: Final = 120.0
QUICK: Final[dict[str, Any]] = {"height": 256, "width": 256, "steps": 4, "guidance": 3.5}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), keys=(*CLIENTS, LEAVER)) as running:
        running.broker.start()
        for number in (1, 2):
            running.start_worker(f"worker-{number}", engine="embedded", device="cpu")
        running.start_frontend()
        yield running


@pytest.fixture
def stack(started: Stack) -> Stack:
    """Whole, whatever the test before has ended."""
    for name, worker in started.workers.items():
        if not worker.is_running:
            started.start_worker(name)
    for name in started.workers:
        started.until_state(name, "ready", START_LIMIT_S)
    return started


def scenes_of(name: str, count: int) -> list[tuple[Scene, str]]:
    """Held-out scenes in words, the same each time."""
    chance = random.Random(name)
    scenes = [draw_scene(chance, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, chance)) for scene in scenes]


def place_of(it: Scene | Reading) -> int | None:
    thing = it.things[0]
    return None if thing is None else thing.cell


def colours_of(it: Scene | Reading) -> tuple[int, int | None]:
    """Of the ground and of the thing on it: what the model is surest of."""
    thing = it.things[0]
    return it.ground, None if thing is None else thing.colour


@contextmanager
def drawing_held(stack: Stack) -> Iterator[None]:
    """No engine process gets on with what it draws."""
    engines = [worker.engine() for worker in stack.workers.values()]
    for engine in engines:
        engine.suspend()
    try:
        yield
    finally:
        for engine in engines:
            with suppress(psutil.NoSuchProcess):
                engine.resume()


def last_workers(stack: Stack, count: int) -> set[str]:
    """That have drawn the latest images."""
    return {event["worker_id"] for event in stack.broker.events("job completed")[-count:]}


def begun(stack: Stack, prompt: str, key: str = CLIENTS[0], **wishes: Any) -> tuple[OpenCall, str, str]:
    """A call whose job a worker has just begun: the call, the worker, the job."""
    before = {name: len(worker.events("job started")) for name, worker in stack.workers.items()}
    call = stack.client(key).begin(prompt, **wishes)

    def look() -> tuple[str, str] | None:
        for name, worker in stack.workers.items():
            if len(events := worker.events("job started")) > before[name]:
                return name, events[-1]["job_id"]
        return None

    return call, *until("a worker has begun the job", look)


def drawn(client: Client, prompt: str, **wishes: Any) -> Drawn:
    """As a patient client: refused because all workers are busy, it asks again."""
    answers = iter(lambda: client.begin(prompt, **wishes).outcome(), None)
    return until("there is room for it", lambda: image_or_busy(next(answers)), limit_s=120.0)


def image_or_busy(answer: Drawn | Refusal) -> Drawn | None:
    if isinstance(answer, Drawn):
        return answer
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED, answer
    return None


def test_interleaved_prompts_get_their_own_scenes(stack: Stack) -> None:
    """Two hundred of four clients, while a fifth one comes and leaves."""
    is_over = threading.Event()

    def come_and_leave() -> int:
        client, left = stack.client(LEAVER), 0
        while not is_over.is_set():
            call = client.begin("a black cross on white", **(QUICK | {"steps": 20}))
            is_over.wait(0.1)
            left += call.is_open
            call.cancel()
        return left

    def drawn_for(key: str) -> list[tuple[Scene, str, Drawn]]:
        client = stack.client(key)
        return [
            (scene, words, drawn(client, words, **QUICK)) for scene, words in scenes_of(key, PROMPTS_A_CLIENT)
        ]

    with ThreadPoolExecutor() as pool:
        leaver = pool.submit(come_and_leave)
        callers = [pool.submit(drawn_for, key) for key in CLIENTS]
        try:
            answers = [answer for caller in callers for answer in caller.result()]
        finally:
            is_over.set()
    assert leaver.result() > 0, "some were left while they were open"
    assert len(answers) == 200
    asked = {colours_of(scene) for scene, *_ in answers}
    assert len(asked) > 20, "swapped ones would be noticed"
    misfits = [
        (words, image)
        for scene, words, image in answers
        if colours_of(scene) != colours_of(seen_in(image.image_png))
    ]
    assert len(misfits) <= MISFITS_MAX, [words for words, _ in misfits]
    for words, image in misfits:
        alone = stack.client().draw(words, seed=image.seed, **QUICK)
        assert pixels_of(alone.image_png).tobytes() == pixels_of(image.image_png).tobytes(), words


def test_a_retried_job_gets_the_picture_that_it_would_have_got(stack: Stack) -> None:
    words = "a big blue circle in the middle, yellow background"
    undisturbed = stack.client().draw(words, seed=11, **QUICK)
    with drawing_held(stack):
        call, worker, job_id = begun(stack, words, seed=11, **QUICK)
        stack.workers[worker].kill()
    again = call.image()
    stack.broker.until_event("job completed", job_id=job_id, attempt=2)
    assert (pixels_of(again.image_png) == pixels_of(undisturbed.image_png)).all()
    assert names_of(again.image_png) == ("yellow", "blue", "circle")


def test_a_repeat_after_the_frontend_was_killed_gets_its_own_picture(stack: Stack) -> None:
    words = "a green square on a white ground"
    with drawing_held(stack):
        lost, _, job_id = begun(stack, words, seed=12, idempotency_key="square", **QUICK)
        stack.frontend.kill()
        assert lost.refusal().code is grpc.StatusCode.UNAVAILABLE
        stack.start_frontend()
        until("the frontend has found the broker", lambda: stack.get("/readyz")[0] == 200)
        repeat = stack.client().begin(words, seed=12, idempotency_key="square", **QUICK)
    assert names_of(repeat.image().image_png) == ("white", "green", "square")
    stack.broker.until_event("job completed", job_id=job_id)


def test_who_comes_after_a_cancelled_job_gets_their_own_picture(stack: Stack) -> None:
    """On either worker: idle ones take turns."""
    with drawing_held(stack):
        left = [begun(stack, "a white star on black", key, **QUICK) for key in CLIENTS[:2]]
        assert {worker for _, worker, _ in left} == set(stack.workers)
        for call, _, job_id in left:
            call.cancel()
            stack.broker.until_event("job cancelled", job_id=job_id)
    for _ in stack.workers:
        after = drawn(stack.client(), "a red triangle on a blue background", seed=13, **QUICK)
        assert names_of(after.image_png) == ("blue", "red", "triangle")
    assert last_workers(stack, 2) == set(stack.workers)


def test_the_same_seed_on_two_workers_gives_the_same_scene(stack: Stack) -> None:
    """Idle workers take turns, and the broker says whose turn it was."""
    images = [stack.client().draw("a purple heart on white", seed=7, **QUICK) for _ in range(4)]
    assert last_workers(stack, 4) == set(stack.workers)
    assert len({pixels_of(image.image_png).tobytes() for image in images}) == 1


def test_the_crop_keeps_the_centre(stack: Stack) -> None:
    """A size that the model cannot draw is the middle of the next larger one."""
    words = "a red circle at the top left, white background"
    whole = stack.client().draw(words, seed=3, **QUICK)
    part = stack.client().draw(words, seed=3, **(QUICK | {"height": 240, "width": 232}))
    pixels = pixels_of(part.image_png)
    assert pixels.shape == (240, 232, 3)
    np.testing.assert_array_equal(pixels, pixels_of(whole.image_png)[8:248, 12:244])
    assert place_of(seen_in(whole.image_png)) == 0


@pytest.mark.parametrize(("height", "width"), [(128, 128), (512, 512), (256, 384), (320, 192)])
def test_other_sizes_keep_the_scene(stack: Stack, height: int, width: int) -> None:
    """Its colours and places; shapes come out less well."""
    wrong = []
    for number, (scene, words) in enumerate(scenes_of("other sizes", PROMPTS_A_SIZE)):
        size = {"height": height, "width": width}
        seen = seen_in(stack.client().draw(words, seed=number, **(QUICK | size)).image_png)
        if (colours_of(seen), place_of(seen)) != (colours_of(scene), place_of(scene)):
            wrong.append(words)
    assert len(wrong) <= PROMPTS_A_SIZE // 4, wrong
