"""One thread for answers that take long to make: the event loop has jobs to pass on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class RenderThread:
    """Makes one answer at a time, so that many that are asked for take no more than one core's share."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="render")

    async def run(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises. It must not touch what the event loop changes."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, make)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
