"""One thread for answers that take long to make: the event loop has jobs to pass on."""

import asyncio
from collections.abc import Awaitable, Callable
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


class SharedAnswer:
    """One that is the same for all: who asks while it is being made for another gets that one."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._in_the_making: asyncio.Task[bytes] | None = None

    async def get(self) -> bytes:
        """Raises what `make` raises."""
        if self._in_the_making is None:
            self._in_the_making = asyncio.create_task(self._made())
        return await asyncio.shield(self._in_the_making)

    def close(self) -> None:
        if self._in_the_making is not None:
            self._in_the_making.cancel()

    async def _made(self) -> bytes:
        try:
            return await self._make()
        finally:
            self._in_the_making = None
