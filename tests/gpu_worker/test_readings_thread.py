"""The thread that takes readings: a driver that blocks or fails in unforeseen ways costs readings only."""

import asyncio
import signal
import sys
import threading
from collections.abc import Callable

import pytest
from samples.wire import READINGS
from structlog.testing import capture_logs

from gpu_worker.readings_thread import ReadingsThread
from proto.messages import Readings

LIMIT_S = 30.0
"""For what must happen, however slow this machine is."""


class Taker:
    """Goes through what is to happen, then takes readings for ever."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self) -> Readings:
        assert threading.current_thread() is not threading.main_thread()
        if self._errors:
            raise self._errors.pop(0)
        return READINGS


class Heard:
    """What was delivered."""

    def __init__(self) -> None:
        self.all: list[Readings] = []
        self._queue: asyncio.Queue[Readings] = asyncio.Queue()

    def __call__(self, readings: Readings) -> None:
        assert asyncio.get_running_loop() is not None
        self.all.append(readings)
        self._queue.put_nowait(readings)

    async def next(self) -> Readings:
        return await asyncio.wait_for(self._queue.get(), LIMIT_S)


def readings_thread(take: Callable[[], Readings], heard: Heard, interval_s: float = 0.001) -> ReadingsThread:
    thread = ReadingsThread(take, heard, interval_s)
    thread.start()
    return thread


def running_threads() -> set[threading.Thread]:
    """Also of an earlier test, which need not have ended yet."""
    return {each for each in threading.enumerate() if each.name == "readings"}


async def test_readings_come_again_and_again() -> None:
    heard = Heard()
    thread = readings_thread(Taker(), heard)
    assert [await heard.next() for _ in range(3)] == [READINGS] * 3
    thread.stop()


async def test_an_error_is_logged_once_for_each_kind_and_readings_go_on() -> None:
    errors = [OSError("a"), OSError("b"), AttributeError("c"), OSError("d"), AttributeError("e")]
    heard = Heard()
    with capture_logs() as logged:
        thread = readings_thread(Taker(*errors), heard)
        assert await heard.next() == READINGS
        thread.stop()
    assert [line["error"] for line in logged] == ["OSError: a", "AttributeError: c"]


async def test_what_comes_late_is_not_delivered() -> None:
    entered, leave = threading.Event(), threading.Event()

    def slowly() -> Readings:
        entered.set()
        leave.wait(LIMIT_S)
        return READINGS

    heard, others = Heard(), running_threads()
    thread = readings_thread(slowly, heard)
    await asyncio.to_thread(entered.wait, LIMIT_S)
    (running,) = running_threads() - others
    thread.stop()
    leave.set()
    await asyncio.to_thread(running.join, LIMIT_S)
    assert not running.is_alive()
    await asyncio.sleep(0)  # for what the thread may have put into the loop
    assert heard.all == []


async def test_it_stops_in_the_middle_of_an_interval() -> None:
    heard, others = Heard(), running_threads()
    thread = readings_thread(Taker(), heard, interval_s=3600)
    await heard.next()
    (running,) = running_threads() - others
    thread.stop()
    await asyncio.to_thread(running.join, LIMIT_S)
    assert not running.is_alive()


WORKER_WITH_BLOCKED_DRIVER = """
import sys, threading
from gpu_worker import process
from gpu_worker.readings import ReadingsTaker

def take(_self):
    print("driver blocks", file=sys.stderr, flush=True)
    threading.Event().wait()

ReadingsTaker.take = take
raise SystemExit(process.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_ends_though_the_driver_blocks(number: signal.Signals) -> None:
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER_WITH_BLOCKED_DRIVER, "--engine", "fake", "--time-scale", "0.2"),
        *("--broker-endpoints", "tcp://127.0.0.1:1", "--worker-id", "blocked", "--log-format", "json"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert worker.stderr is not None
    try:
        async with asyncio.timeout(LIMIT_S):
            while b"driver blocks" not in await worker.stderr.readline():
                assert worker.returncode is None
            worker.send_signal(number)
            said = await worker.stderr.read()
            assert await worker.wait() == 0, said.decode()
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
