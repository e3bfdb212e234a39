"""SIGHUP, which asks a process to read its files again, and the signals that end it."""

import asyncio
import os
import signal

from proto.signals import on_end_signals, on_reload_signal


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


async def test_signals_that_come_before_the_loop_gets_to_the_first_are_all_told() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    heard: asyncio.Queue[str] = asyncio.Queue()
    on_end_signals(heard.put_nowait)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    try:
        async with asyncio.timeout(15):
            assert [await heard.get() for _ in range(3)] == ["SIGTERM", "SIGTERM", "SIGINT"]
        assert {signal.getsignal(number) for number in before} == {signal.SIG_DFL}, "the next one ends it"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
