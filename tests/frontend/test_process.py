"""`python -m frontend` as a launcher or systemd sees it: exit codes, signals, lines on stderr."""

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager

import grpc
import pytest

import image_gen_pb2
import image_gen_pb2_grpc
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

LIMIT_S = 30.0
ARGUMENTS = ("--grpc-port", "0", "--http-port", "0", "--log-format", "json")


@asynccontextmanager
async def process(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FLUX_", "API_"))}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "frontend",
        *arguments,
        env={**inherited, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def line_of(child, event):
    """The first log line of that event."""
    while line := await child.stderr.readline():
        found = json.loads(line)
        if found["event"] == event:
            return found
    pytest.fail(f"ended without '{event}'")


@pytest.mark.parametrize(("option", "purpose"), [("--grpc-port", "gRPC"), ("--http-port", "HTTP")])
async def test_a_taken_port_is_one_line_and_an_exit_code_of_its_own(option, purpose):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with process(*ARGUMENTS, option, str(port), API_KEYS="hush") as child:
            said = (await child.stderr.read()).decode()
            assert await child.wait() == EXIT_CANNOT_START
    assert said == (
        f"frontend: cannot listen for {purpose} on 127.0.0.1 port {port}: "
        "the port is taken by another process\n"
    )


async def test_without_keys_nothing_starts():
    async with process(*ARGUMENTS) as child:
        said = (await child.stderr.read()).decode()
        assert await child.wait() == EXIT_BAD_CONFIGURATION
    assert "--api-keys (API_KEYS): missing" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_serves_until_a_signal_and_ends_with_0(number):
    async with process(*ARGUMENTS, API_KEYS="hush") as child:
        serving = await line_of(child, "serving")
        async with grpc.aio.insecure_channel(serving["grpc"]) as channel:
            stub = image_gen_pb2_grpc.ImageGenStub(channel)
            answer = await stub.Ping(image_gen_pb2.PingRequest(), metadata=(("api-key", "hush"),))
        assert answer.message == "Pong"
        child.send_signal(number)
        rest = (await child.stderr.read()).decode()
        assert await child.wait() == 0
    assert "Traceback" not in rest
    assert "hush" not in rest
