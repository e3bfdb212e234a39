"""The thread that makes PNGs: in order, few at a time, and beside whoever draws."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from samples.wire import PARAMETERS, identifier

from gpu_worker.engines.engine import EngineJob
from gpu_worker.png_thread import DrawnImage, PngThread

LIMIT_S = 30.0
"""For what must happen, however slow this machine is."""


class GatedFinish:
    """Stands at a gate with each image until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.finished: list[bytes] = []

    def __call__(self, image: DrawnImage) -> None:
        self.begun.release()
        assert self.gate.acquire(timeout=LIMIT_S)
        self.finished.append(image.job.execution_id)


def drawn(name: str) -> DrawnImage:
    execution = identifier(name)
    job = EngineJob(execution_id=execution, job_id=execution, prompt="", parameters=PARAMETERS)
    return DrawnImage(job=job, pixels=np.zeros((1, 1, 3), dtype=np.uint8))


@pytest.fixture
def finish() -> GatedFinish:
    return GatedFinish()


@pytest.fixture
def pngs(finish: GatedFinish) -> Iterator[PngThread]:
    pngs = PngThread(finish)
    pngs.start()
    yield pngs
    finish.gate.release(10)
    pngs.wait_idle()


def in_thread(function) -> threading.Event:
    """Set when it has returned."""
    returned = threading.Event()

    def run() -> None:
        function()
        returned.set()

    threading.Thread(target=run, daemon=True).start()
    return returned


def _placed(pngs: PngThread) -> DrawnImage:
    pngs.take_place()
    return drawn("placed")


def test_whoever_draws_goes_on_beside_it_until_two_images_wait(pngs, finish):
    for name in ("first", "second"):
        pngs.take_place()
        pngs.give(drawn(name))
    assert finish.begun.acquire(timeout=LIMIT_S)
    third = in_thread(pngs.take_place)
    assert not third.is_set()
    assert finish.finished == []
    finish.gate.release()
    assert third.wait(LIMIT_S), "one is finished: there is a place"
    assert finish.finished == [identifier("first")]
    pngs.give(drawn("third"))


def test_images_are_finished_in_the_order_in_which_they_were_drawn(pngs, finish):
    names = ["a", "b", "c", "d"]
    finish.gate.release(len(names))
    for name in names:
        pngs.take_place()
        pngs.give(drawn(name))
    pngs.wait_idle()
    assert finish.finished == [identifier(name) for name in names]


def test_whoever_waits_for_the_end_waits_for_all(pngs, finish):
    for name in ("first", "second"):
        pngs.take_place()
        pngs.give(drawn(name))
    idle = in_thread(pngs.wait_idle)
    finish.gate.release()
    assert finish.begun.acquire(timeout=LIMIT_S)
    assert finish.begun.acquire(timeout=LIMIT_S), "the second is under way"
    assert not idle.is_set()
    finish.gate.release()
    assert idle.wait(LIMIT_S)
    assert len(finish.finished) == 2
    assert in_thread(lambda: pngs.give(_placed(pngs))).wait(LIMIT_S), "and there is room again"


def test_without_an_image_there_is_nothing_to_wait_for(pngs):
    pngs.wait_idle()
