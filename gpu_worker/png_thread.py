"""A thread of the engine process that makes PNGs, beside the drawing of the next image."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gpu_worker.engines.engine import EngineJob, RgbImage

_PLACES: Final = 2
"""One image in the making and one that waits: more would only fill the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnImage:
    job: EngineJob
    pixels: RgbImage
    png: bytes | None = None
    """Made already."""


class PngThread:
    """Calls `finish` for one image after the other, in the order in which they were drawn."""

    def __init__(self, finish: Callable[[DrawnImage], None]) -> None:
        """`finish` raises nothing."""
        self._finish = finish
        self._places = threading.BoundedSemaphore(_PLACES)
        self._drawn: queue.SimpleQueue[DrawnImage] = queue.SimpleQueue()

    def start(self) -> None:
        threading.Thread(target=self._work, name="png", daemon=True).start()

    def take_place(self) -> None:
        """Wait until there is room for one more image; `give` has to follow."""
        self._places.acquire()

    def give(self, image: DrawnImage) -> None:
        self._drawn.put(image)

    def wait_idle(self) -> None:
        """Until every image that was given is finished. For the thread that gives them."""
        for _ in range(_PLACES):
            self._places.acquire()
        self._places.release(_PLACES)

    def _work(self) -> None:
        while True:
            self._finish(self._drawn.get())
            self._places.release()
