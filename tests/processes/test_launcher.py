"""The launcher as its user meets it: `python -m deploy`, its output, its signals, its exit status."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest

import image_gen_pb2
import image_gen_pb2_grpc
from deploy.ports import free_ports
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

READY_LIMIT_S = 40.0
END_LIMIT_S = 20.0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "imagegen.ImageGen"}],
                "waitForReady": True,
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "1s",
                    "maxBackoff": "5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


class RunningLauncher:
    """A launcher, and what it has written until now."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.output = ""
        self._grown = asyncio.Condition()
        assert process.stdout is not None
        self._reading = asyncio.create_task(self._read(process.stdout))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            async with self._grown:
                self.output += line.decode()
                self._grown.notify_all()

    async def writes(self, pattern: str, limit_s: float = READY_LIMIT_S) -> re.Match[str]:
        """Wait until it has written something that matches."""
        try:
            async with asyncio.timeout(limit_s), self._grown:
                await self._grown.wait_for(lambda: re.search(pattern, self.output))
        except TimeoutError:
            pytest.fail(f"no {pattern!r} within {limit_s} s in:\n{self.output}")
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    async def ends(self, limit_s: float = END_LIMIT_S) -> int:
        try:
            status = await asyncio.wait_for(self.process.wait(), limit_s)
        except TimeoutError:
            pytest.fail(f"still runs after {limit_s} s:\n{self.output}")
        await asyncio.wait_for(self._reading, limit_s)
        return status

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def component(self, package: str) -> psutil.Process:
        (found,) = [
            child
            for child in psutil.Process(self.process.pid).children()
            if child.cmdline()[-2:] == ["-m", package]
        ]
        return found

    async def draw(self) -> bytes:
        """One image from the service that it said to have started, trying again while it is unavailable."""
        address = (await self.writes(r"gRPC +(\S+)"))[1]
        key = (await self.writes(r"api-key +(\S+)"))[1]
        async with grpc.aio.insecure_channel(address, options=[("grpc.service_config", RETRYING)]) as channel:
            request = image_gen_pb2.GenerateRequest(
                prompt="x", height=16, width=16, num_inference_steps=1, guidance_scale=7.5
            )
            call = image_gen_pb2_grpc.ImageGenStub(channel).Generate(
                request, metadata=[("api-key", key)], timeout=READY_LIMIT_S
            )
            return bytes((await call).image_png)

    async def kill_all(self) -> None:
        """For the end of a test, however it went."""
        if self.process.returncode is None:
            for child in self.descendants():
                child.kill()
            self.process.kill()
        await self.process.wait()
        await self._reading


Start = Callable[..., AbstractAsyncContextManager[RunningLauncher]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a launcher on free ports in an empty folder, by default with the fake engine."""
    ports = free_ports(2)

    @asynccontextmanager
    async def start(*arguments: str, **environment: str) -> AsyncIterator[RunningLauncher]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLUX_") and k != "API_KEYS"}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "deploy", "--engine", "fake", "--grpc-port", str(ports[0])),
            *("--http-port", str(ports[1]), *arguments),
            cwd=tmp_path,
            env={**inherited, "TMPDIR": str(tmp_path), **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        launcher = RunningLauncher(process, tmp_path)
        try:
            yield launcher
        finally:
            await launcher.kill_all()

    return start


async def gone(processes: list[psutil.Process]) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=END_LIMIT_S)
    assert not [each for each in alive if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


async def test_it_gets_ready_draws_and_ends_on_ctrl_c(start: Start) -> None:
    async with start(FLUX_WORKER_FAKE_LOAD_S="2") as launcher:  # long enough to be seen loading
        await launcher.writes(r"stop +Ctrl-C")
        assert re.search(r"worker-1: .*%", launcher.output), "no progress was shown"
        assert (await launcher.draw()).startswith(PNG_SIGNATURE)
        everything = launcher.descendants()
        assert len(everything) >= 4  # three components and the engine
        launcher.signal(signal.SIGINT)
        assert await launcher.ends() == 0
        assert launcher.output.rstrip().endswith("stopped")
        await gone(everything)
        assert not list(launcher.folder.glob("flux-*")), "the socket folder is left"


async def test_two_workers_get_ready(start: Start) -> None:
    async with start("--workers", "2") as launcher:
        await launcher.writes("flux-server: ready")
        assert "worker-1: ready" in launcher.output
        assert "worker-2: ready" in launcher.output
        launcher.signal(signal.SIGTERM)
        assert await launcher.ends() == 0


async def test_keys_of_ones_own_are_used_and_never_printed(start: Start) -> None:
    async with start(API_KEYS="correct-horse,battery-staple") as launcher:
        await launcher.writes(r"api-key +2 from API_KEYS")
        launcher.signal(signal.SIGTERM)
        assert await launcher.ends() == 0
        assert "correct-horse" not in launcher.output


@pytest.mark.parametrize("package", ["broker", "gpu_worker", "frontend"])
async def test_a_killed_component_is_started_again(start: Start, package: str) -> None:
    async with start() as launcher:
        await launcher.writes(r"stop +Ctrl-C")
        victim = launcher.component(package)
        victim.kill()
        await launcher.writes(r"ended \(killed by SIGKILL\), starting it again in 1 s")
        await gone([victim])
        assert (await launcher.draw()).startswith(PNG_SIGNATURE)
        assert launcher.component(package).pid != victim.pid


async def test_nothing_outlives_a_killed_launcher(start: Start) -> None:
    async with start() as launcher:
        await launcher.writes(r"stop +Ctrl-C")
        everything = launcher.descendants()
        launcher.signal(signal.SIGKILL)
        await launcher.ends()
        await gone(everything)


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port"])
async def test_a_taken_port_is_named(start: Start, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with start(option, port) as launcher:
            assert await launcher.ends(READY_LIMIT_S) == EXIT_CANNOT_START
    assert re.search(
        rf"frontend cannot run \(exit status {EXIT_CANNOT_START}\):\n.*\b{port}\b", launcher.output
    )


async def test_a_missing_model_folder_is_named(start: Start) -> None:
    async with start("--engine", "flux", "--model-dir", "/no/such/folder") as launcher:
        assert await launcher.ends(READY_LIMIT_S) == EXIT_BAD_CONFIGURATION
    assert re.search(r"worker-1 cannot run .*\n.*/no/such/folder", launcher.output)


async def test_empty_keys_are_named(start: Start) -> None:
    async with start(API_KEYS="") as launcher:
        assert await launcher.ends(READY_LIMIT_S) == EXIT_BAD_CONFIGURATION
    assert re.search(r"frontend cannot run .*\n.*API_KEYS", launcher.output)


def write_stubs(folder: Path, code: str) -> str:
    """Stand-ins for the three components; returns the PYTHONPATH on which they go first."""
    for package in ("broker", "gpu_worker", "frontend"):
        (folder / f"{package}.py").write_text(code)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


DEAF = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", sys.argv[0].rsplit("/")[-1], flush=True)
while True:
    signal.pause()
"""


async def test_a_sigterm_that_comes_twice_at_once_is_one(start: Start) -> None:
    """make passes on what its whole process group has got already."""
    async with start() as launcher:
        await launcher.writes(r"stop +Ctrl-C")
        launcher.signal(signal.SIGTERM)
        launcher.signal(signal.SIGTERM)
        assert await launcher.ends() == 0
        assert "killing" not in launcher.output


async def test_a_second_ctrl_c_kills_at_once(start: Start, tmp_path: Path) -> None:
    async with start(PYTHONPATH=write_stubs(tmp_path, DEAF)) as launcher:
        for package in ("broker", "gpu_worker", "frontend"):
            await launcher.writes(f"deaf {package}")
        everything = launcher.descendants()
        launcher.signal(signal.SIGINT)
        await launcher.writes("stopping")
        launcher.signal(signal.SIGINT)
        assert await launcher.ends() == 0
        await gone(everything)


async def test_what_does_not_stop_in_time_is_killed(start: Start, tmp_path: Path) -> None:
    async with start("--stop-limit-s", "0.2", PYTHONPATH=write_stubs(tmp_path, DEAF)) as launcher:
        for package in ("broker", "gpu_worker", "frontend"):
            await launcher.writes(f"deaf {package}")
        everything = launcher.descendants()
        launcher.signal(signal.SIGTERM)
        assert await launcher.ends() == 0
        await gone(everything)


async def test_components_that_die_again_and_again_are_given_up(start: Start, tmp_path: Path) -> None:
    stubs = write_stubs(tmp_path, "raise SystemExit('out of cheese')")
    async with start(PYTHONPATH=stubs) as launcher:
        assert await launcher.ends() == 1
    assert re.search(r"cannot run \(exit status 1\):\n.*out of cheese", launcher.output)
