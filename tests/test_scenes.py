"""What only a model that means something can show: everybody gets the scene that they asked for.

The real stack with the embedded model; pictures are read back by the scorer of `training`.
"""

import io
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
import numpy as np
import pytest
from PIL import Image
from processes.stack import LIMIT_S, Drawn, Refusal, Stack, until
from samples.training_source import import_training

from gpu_worker.engines.offline import prepare_environment

prepare_environment()
import_training()

from training.captions import caption  # noqa: E402
from training.scenes import Scene, Thing, draw_scene  # noqa: E402
from training.scorer import Reading, read_single  # noqa: E402

pytestmark = pytest.mark.timeout(400)

CLIENTS: Final = ("one", "two", "three", "four")
PROMPTS_A_CLIENT: Final = 50
MISFITS_MAX: Final = 10
"""Of 200 pictures: the model itself is right about the colours in more than 97 of 100."""
START_LIMIT_S: Final = 120.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), keys=CLIENTS) as running:
        running.broker.start()
        for number in (1, 2):
            running.start_worker(f"worker-{number}", engine="embedded", device="cpu")
        running.start_frontend()
        for worker in running.workers:
            running.until_state(worker, "ready", START_LIMIT_S)
        yield running


def scenes_of(name: str, count: int) -> list[tuple[Scene, str]]:
    """Held-out scenes in words, the same each time."""
    chance = random.Random(name)
    scenes = [draw_scene(chance, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, chance)) for scene in scenes]


def seen_in(png: bytes) -> Reading:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return read_single(np.asarray(image.convert("RGB"), np.float32) / 255)


def colours_of(it: Scene | Reading) -> tuple[int, int | None]:
    """Of the ground and of the thing on it: what the model is surest of."""
    thing = it.things[0]
    return it.ground, None if thing is None else thing.colour


WISH: Final[dict[str, Any]] = {"height": 256, "width": 256, "steps": 4, "guidance": 3.5}


def test_two_hundred_interleaved_prompts_get_their_own_scenes(stack: Stack) -> None:
    """Beside them others come and leave."""
    is_over = threading.Event()

    def come_and_leave() -> None:
        client = stack.client(CLIENTS[-1])
        while not is_over.is_set():
            call = client.begin("a black cross on white", **(WISH | {"height": 512, "width": 512}))
            is_over.wait(0.1)
            call.cancel()

    def drawn_for(key: str) -> list[tuple[Scene, Reading]]:
        client = stack.client(key)
        return [
            (scene, seen_in(until_drawn(client.begin, words).image_png))
            for scene, words in scenes_of(key, PROMPTS_A_CLIENT)
        ]

    with ThreadPoolExecutor() as pool:
        leaver = pool.submit(come_and_leave)
        callers = [pool.submit(drawn_for, key) for key in CLIENTS[:-1]]
        pairs = [pair for caller in callers for pair in caller.result()]
        is_over.set()
        leaver.result()
    asked = {colours_of(scene) for scene, _ in pairs}
    misfits = [(scene, found) for scene, found in pairs if colours_of(scene) != colours_of(found)]
    assert len(misfits) <= MISFITS_MAX, f"of {len(pairs)}: {misfits}"
    assert len(asked) > 20, "many different ones"
