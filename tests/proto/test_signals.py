"""SIGHUP, which asks a process to read its files again."""

import asyncio
import os
import signal

from proto.signals import on_reload_signal


async def test_each_reload_reaches_all_even_behind_one_that_fails() -> None:
    loop = asyncio.get_running_loop()
    failures: list[str] = []
    loop.set_exception_handler(lambda _, context: failures.append(str(context["exception"])))
    heard: asyncio.Queue[str] = asyncio.Queue()

    def fail() -> None:
        raise RuntimeError("broken file")

    on_reload_signal(lambda: heard.put_nowait("first"))
    on_reload_signal(fail)
    on_reload_signal(lambda: heard.put_nowait("last"))
    async with asyncio.timeout(15):
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            assert [await heard.get(), await heard.get()] == ["first", "last"]
            assert failures == ["broken file"] * count
    loop.remove_signal_handler(signal.SIGHUP)
