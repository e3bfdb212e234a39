"""What a container's health check finds, of a real watch and of a real port."""

import asyncio
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from proto.service_watch import ServiceWatch

CHECK = Path(__file__).resolve().parents[2] / "deploy" / "docker" / "health.py"
LIMIT_S = 30.0


@pytest.fixture
def notify_socket(monkeypatch) -> Iterator[str]:
    """A path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="flux-") as folder:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        yield f"{folder}/notify"


async def check(*arguments: str, **environment: str) -> tuple[int, str]:
    """Its status, and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-IS", str(CHECK), *arguments),
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode is not None
    return process.returncode, said.decode().strip()


def watch(*, well: bool = True, status: str = "loading: 40 %") -> ServiceWatch:
    made = ServiceWatch(status=lambda: status, is_well=lambda: well)
    made.start()
    return made


async def test_what_starts_is_alive_and_what_serves_does_well(notify_socket):
    own = watch()
    socket_given = {"NOTIFY_SOCKET": notify_socket}
    assert await check(**socket_given) == (1, "flux-health: loading: 40 %")
    assert await check("alive", **socket_given) == (0, "")
    own.ready()
    assert await check(**socket_given) == (0, "")
    own.stopping()
    assert (await check(**socket_given))[0] == 1
    assert await check("alive", **socket_given) == (0, "")
    own.close()


async def test_two_checks_at_once_do_not_disturb_each_other(notify_socket):
    own = watch()
    own.ready()
    checks = [check(*words, NOTIFY_SOCKET=notify_socket) for words in ((), ("alive",), (), ("alive",))]
    assert await asyncio.gather(*checks) == [(0, "")] * 4
    own.close()
    assert not Path(notify_socket).exists()


async def test_what_hangs_does_not_do_well(notify_socket):
    own = watch(well=False)
    own.ready()
    said = (1, "flux-health: no sign of life for 5 s")
    assert await check("alive", NOTIFY_SOCKET=notify_socket) == said
    own.close()


@asynccontextmanager
async def pages(ready: bool):
    async def answer(request: web.Request) -> web.Response:
        serves = ready or request.path == "/healthz"
        return web.Response(text="" if serves else "no worker is ready\n", status=200 if serves else 503)

    application = web.Application()
    application.router.add_get("/{page}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield str(runner.addresses[0][1])
    await runner.cleanup()


async def test_the_whole_service_is_asked_at_its_port(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    async with pages(ready=True) as port:
        assert await check(FLUX_FRONTEND_HTTP_PORT=port) == (0, "")
        assert await check(FLUX_FRONTEND_HTTP_PORT="1", FLUX_SERVER_HTTP_PORT=port) == (0, "")
    async with pages(ready=False) as port:
        assert await check(FLUX_FRONTEND_HTTP_PORT=port) == (1, "flux-health: no worker is ready")
        assert await check("alive", FLUX_FRONTEND_HTTP_PORT=port) == (0, "")


async def test_a_port_that_nobody_opened_is_named(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    status, said = await check(FLUX_FRONTEND_HTTP_PORT="1")
    assert status == 1
    assert said.startswith("flux-health: port 1 does not answer: ")
