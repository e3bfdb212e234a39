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
import trustme

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
        f"the port is taken by another process; {option[2:].replace('-', '_')} sets another one\n"
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


async def test_files_that_cannot_be_used_are_one_line_and_a_bad_configuration(tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text('[clients.alice]\nkeys = ["hush hush"]')
    async with process(*ARGUMENTS, "--api-keys-file", str(keys)) as child:
        said = (await child.stderr.read()).decode()
        assert await child.wait() == EXIT_BAD_CONFIGURATION
    problem = "clients.alice.keys.1: a key consists of printable ASCII characters without spaces"
    assert said == f"frontend: {keys}: {problem}\n"


async def shake_no_hands(address):
    """Until the server ends the connection."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    await reader.read()
    writer.close()


async def test_sighup_does_not_end_one_that_has_no_files():
    async with process(*ARGUMENTS, API_KEYS="hush") as child:
        await line_of(child, "serving")
        child.send_signal(signal.SIGHUP)
        assert (await line_of(child, "reading keys and certificates again"))["on"] == "SIGHUP"
        child.send_signal(signal.SIGTERM)
        await child.stderr.read()
        assert await child.wait() == 0


async def test_sighup_takes_keys_and_certificate_anew_and_does_not_end_it(tmp_path):
    keys, certificate, private_key = (tmp_path / name for name in ("keys.toml", "server.pem", "server.key"))

    def write(key):
        """A key, and a certificate; gives the certificate's authority."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_pem.write_to_path(str(private_key))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        keys.write_text(f'[clients.alice]\nkeys = ["{key}"]')
        for path in (keys, private_key):
            path.chmod(0o600)
        return authority.cert_pem.bytes()

    async def ping(address, authority, key):
        credentials = grpc.ssl_channel_credentials(authority)
        async with grpc.aio.secure_channel(address, credentials) as channel:
            stub = image_gen_pb2_grpc.ImageGenStub(channel)
            return (await stub.Ping(image_gen_pb2.PingRequest(), metadata=(("api-key", key),))).message

    first = write("hush-1")
    tls = ("--tls-certificate-file", str(certificate), "--tls-private-key-file", str(private_key))
    async with process(*ARGUMENTS, *tls, "--api-keys-file", str(keys)) as child:
        serving = await line_of(child, "serving")
        assert (serving["tls"], serving["api_keys"]) == (True, 1)
        assert await ping(serving["grpc"], first, "hush-1") == "Pong"
        second = write("hush-2")
        child.send_signal(signal.SIGHUP)
        again = {(await line_of(child, "files read again"))["what"] for _ in range(2)}
        assert again == {"certificate", "API keys"}
        assert await ping(serving["grpc"], second, "hush-2") == "Pong"
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ping(serving["grpc"], second, "hush-1")
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        await shake_no_hands(serving["grpc"])
        child.send_signal(signal.SIGTERM)
        rest = (await child.stderr.read()).decode()
        assert await child.wait() == 0
    assert "hush" not in rest
    assert all(line.startswith("{") for line in rest.splitlines()), "gRPC keeps quiet"
