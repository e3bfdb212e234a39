"""What systemd is told, over a real socket, while a process starts, serves, gets stuck and stops."""

import asyncio
import os
import socket
import tempfile
from pathlib import Path

import pytest

from proto.service_manager import ServiceManager
from proto.service_watch import ServiceWatch

LIMIT_S = 10.0
"""For what must happen, however slow this machine is."""
WATCHDOG_USEC = 40_000


class Listener:
    """The service manager's end of the socket."""

    def __init__(self, address):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address)

    async def hear(self):
        """The fields of the next datagram."""
        async with asyncio.timeout(LIMIT_S):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 4096)
        return dict(line.split("=", 1) for line in data.decode().splitlines())

    async def until(self, field, value):
        while (fields := await self.hear()).get(field) != value:
            pass
        return fields

    def silence(self):
        """Whatever has come is thrown away."""
        while True:
            try:
                self._socket.recv(4096)
            except BlockingIOError:
                return

    @property
    def is_silent(self):
        try:
            self._socket.recv(4096, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def close(self):
        self._socket.close()


@pytest.fixture
def address():
    with tempfile.TemporaryDirectory(prefix="flux-") as folder:
        yield str(Path(folder) / "notify")


@pytest.fixture
def listener(address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", str(WATCHDOG_USEC))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    end = Listener(address)
    yield end
    end.close()


class Process:
    """How it does, as a test wishes."""

    def __init__(self):
        self.status = "loading: weights, 10 %"
        self.well = True
        self.watch = ServiceWatch(status=lambda: self.status, is_well=lambda: self.well)


@pytest.fixture
async def process(listener):
    process = Process()
    yield process
    process.watch.close()


async def test_a_long_start_is_given_its_time_and_tells_how_far_it_is(process, listener):
    process.watch.start()
    first = await listener.hear()
    assert first == {"STATUS": process.status, "WATCHDOG": "1", "EXTEND_TIMEOUT_USEC": "60000000"}
    process.status = "loading: weights, 20 %"
    await listener.until("STATUS", "loading: weights, 20 %")


async def test_ready_is_said_once_and_from_then_on_no_time_is_asked_for(process, listener):
    process.watch.start()
    await listener.hear()
    process.watch.ready()
    assert (await listener.until("READY", "1")) == {"READY": "1", "WATCHDOG": "1"}
    process.watch.ready()
    for _ in range(3):
        assert await listener.hear() == {"WATCHDOG": "1"}


async def test_a_long_stop_is_given_its_time(process, listener):
    process.watch.ready()
    await listener.hear()
    process.watch.stopping()
    stopping = await listener.until("STOPPING", "1")
    assert stopping["EXTEND_TIMEOUT_USEC"] == "60000000"
    process.watch.ready()
    assert "READY" not in await listener.hear()


async def test_nobody_is_fed_while_the_process_is_not_well(process, listener):
    process.watch.ready()
    await listener.hear()
    process.well, process.status = False, "stuck"
    assert "WATCHDOG" not in await listener.until("STATUS", "stuck")
    process.status = "still stuck"
    assert await listener.hear() == {"STATUS": "still stuck"}
    process.well = True
    await listener.until("WATCHDOG", "1")


async def test_a_stuck_start_gets_no_more_time(process, listener):
    process.well = False
    process.watch.start()
    assert await listener.hear() == {"STATUS": process.status}


async def test_after_a_standstill_what_is_due_goes_first(process, listener):
    """The process is not well until a timer that is due has run: it must not look bad for that."""
    process.watch.ready()
    await listener.hear()
    loop = asyncio.get_running_loop()
    listener.silence()
    process.well = False
    fed_at_last = loop.create_future()
    loop.call_later(WATCHDOG_USEC / 1e6 / 4, setattr, process, "well", True)
    loop.call_later(WATCHDOG_USEC / 1e6, fed_at_last.set_result, None)
    stand_still_until = loop.time() + WATCHDOG_USEC / 1e6
    while loop.time() < stand_still_until:
        pass
    await fed_at_last
    assert not listener.is_silent, "it was fed before anything else could happen"


async def test_what_the_manager_could_not_take_is_said_again(process, listener, address):
    listener.close()
    Path(address).unlink()
    process.watch.ready()
    process.watch.start()
    successor = Listener(address)
    assert (await successor.until("READY", "1"))["STATUS"] == process.status
    successor.close()


async def test_a_closed_watch_is_silent(process, listener):
    process.watch.ready()
    process.watch.close()
    listener.silence()
    process.watch.stopping()
    passed = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(3 * WATCHDOG_USEC / 1e6, passed.set_result, None)
    await passed
    assert listener.is_silent


async def test_without_a_service_manager_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    watch = ServiceWatch(status=lambda: pytest.fail("asked"), is_well=lambda: pytest.fail("asked"))
    watch.start()
    watch.ready()
    watch.stopping()
    watch.close()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None),
        ({"NOTIFY_SOCKET": "/run/notify"}, ServiceManager("/run/notify", None)),
        ({"NOTIFY_SOCKET": "@notify"}, ServiceManager("\0notify", None)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "3000000"}, ServiceManager("\0n", 3.0)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "soon"}, ServiceManager("\0n", None)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "0"}, ServiceManager("\0n", None)),
        ({"NOTIFY_SOCKET": "@n", "WATCHDOG_USEC": "3", "WATCHDOG_PID": "1"}, ServiceManager("\0n", None)),
    ],
)
def test_who_listens(variables, expected):
    environment = {**variables, "PATH": "/bin"}
    assert ServiceManager.take_from(environment) == expected
    assert environment == {"PATH": "/bin"}, "child processes are not to speak for this one"


def test_an_abstract_socket_and_a_text_of_several_lines():
    name = f"flux-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0{name}")
        manager = ServiceManager.take_from({"NOTIFY_SOCKET": f"@{name}"})
        assert manager is not None
        assert manager.tell(STATUS="two\nREADY=1 lines")
        assert end.recv(4096) == b"STATUS=two READY=1 lines"
