"""The frontend's life: health, a taken port, and a drain that loses nothing it has begun."""

import asyncio
import signal
import socket
import struct
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2

import image_gen_pb2
from frontend import health
from frontend.ports import CannotListen, require_free_port
from frontend.probes import GrpcProbe, authority, own_target

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health_call(frontend, method):
    make = frontend.channel.unary_stream if method == "Watch" else frontend.channel.unary_unary
    return make(
        f"/grpc.health.v1.Health/{method}",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def test_the_service_is_healthy_with_a_ready_worker_only(frontend, limit_s):
    watch = health_call(frontend, "Watch")(
        health_pb2.HealthCheckRequest(service="imagegen.ImageGen"), timeout=limit_s
    )
    seen = [(await watch.read()).status]
    for count in (1, 0, 2):
        frontend.cluster.set_ready_workers(count)
        seen.append((await watch.read()).status)
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    check = health_call(frontend, "Check")
    assert (await check(health_pb2.HealthCheckRequest(service=""))).status == SERVING
    watch.cancel()


async def test_health_of_an_unknown_service_is_not_found(frontend):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await health_call(frontend, "Check")(health_pb2.HealthCheckRequest(service="nonsense"))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_all_services_are_listed_with_their_health(frontend):
    frontend.cluster.set_ready_workers(1)
    call = frontend.channel.unary_unary(
        "/grpc.health.v1.Health/List",
        request_serializer=health_pb2.HealthListRequest.SerializeToString,
        response_deserializer=health_pb2.HealthListResponse.FromString,
    )
    statuses = (await call(health_pb2.HealthListRequest())).statuses
    assert {service: each.status for service, each in statuses.items()} == {
        "": SERVING,
        "imagegen.ImageGen": SERVING,
    }


async def test_a_watcher_of_an_unknown_service_is_told_so(frontend, limit_s):
    watch = health_call(frontend, "Watch")(health_pb2.HealthCheckRequest(service="nonsense"), timeout=limit_s)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_a_name_that_no_service_has_is_not_kept(frontend, limit_s):
    request = health_pb2.HealthCheckRequest(service="x" * 257)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await health_call(frontend, "Watch")(request, timeout=limit_s).read()
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "256 characters" in refusal.value.details()


async def test_health_watchers_of_an_address_are_bounded(frontend, limit_s, monkeypatch):
    monkeypatch.setattr(health, "WATCHERS_MAX", 3)

    async def begun():
        call = health_call(frontend, "Watch")(health_pb2.HealthCheckRequest(), timeout=limit_s)
        return call, (await call.read()).status

    opened = [await begun() for _ in range(3)]
    assert [status for _, status in opened] == [SERVING] * 3
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await begun()
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "3 health watchers of this address are open" in refusal.value.details()
    opened[0][0].cancel()
    async with asyncio.timeout(limit_s):
        while True:
            try:
                opened[0] = await begun()
                break
            except grpc.aio.AioRpcError:
                continue  # The frontend has not heard of the cancel yet.
    for call, _ in opened:
        call.cancel()


async def watch_without_reading(frontend, service):
    """Over HTTP/2 by hand, as a peer to which nothing may be written: its window is 0 bytes."""

    def frame(kind, flags, stream, payload=b""):
        return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload

    def field(name, value):
        return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

    fields = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/grpc.health.v1.Health/Watch",
        b":authority": b"x",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    reader, writer = await asyncio.open_connection("127.0.0.1", frontend.grpc_port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack("!HI", 4, 0)))
    writer.write(frame(1, 4, 1, b"".join(field(*each) for each in fields.items())))
    writer.write(frame(0, 1, 1, b"\0" + len(message).to_bytes(4) + message))
    kind = None
    while kind != 1:  # The headers of the answer: its first message waits behind them.
        head = await reader.readexactly(9)
        kind = head[3]
        await reader.readexactly(int.from_bytes(head[:3]))
    return writer


async def test_who_watches_and_does_not_read_holds_up_nobody(start_frontend, limit_s):
    async with asyncio.timeout(limit_s):
        async with start_frontend(drain_s=0.2) as frontend:
            mute = [await watch_without_reading(frontend, each) for each in ("", "imagegen.ImageGen")]
            frontend.cluster.set_ready_workers(1)
            request = health_pb2.HealthCheckRequest(service="imagegen.ImageGen")
            watch = health_call(frontend, "Watch")(request, timeout=limit_s)
            assert (await watch.read()).status == SERVING
            frontend.cluster.set_ready_workers(0)
            assert (await watch.read()).status == NOT_SERVING
            assert (await health_call(frontend, "Check")(request)).status == NOT_SERVING
            watch.cancel()
        assert frontend.cluster.life == ["started", "drained", "closed"]
    for each in mute:
        each.close()


async def test_of_thousands_of_calls_at_once_each_is_answered(frontend):
    """More than gRPC lets wait by itself: it cancels what is beyond, and no client knows why."""
    calls = [frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=frontend.key) for _ in range(4000)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert {str(answer) for answer in answers} == {'message: "Pong"\n'}


async def test_a_drain_finishes_open_calls_and_tells_everyone(start_frontend, limit_s):
    async with start_frontend() as frontend:
        frontend.cluster.set_ready_workers(1)
        frontend.cluster.may_end.clear()
        call = frontend.generate()
        await frontend.cluster.draw_begun.wait()
        watch = health_call(frontend, "Watch")(health_pb2.HealthCheckRequest(service=""), timeout=limit_s)
        assert (await watch.read()).status == SERVING

        async def observe():
            assert (await watch.read()).status == NOT_SERVING
            assert "drained" in frontend.cluster.life
            assert "closed" not in frontend.cluster.life
            assert (await frontend.get("/readyz"))[0] == 503
            assert (await frontend.get("/healthz"))[0] == 503
            frontend.cluster.may_end.set()
            return await call

        observer = asyncio.create_task(observe())
        # Leaving the inner context is the drain.
    assert observer.result().image_png
    assert frontend.cluster.life == ["started", "drained", "closed"]


async def test_a_drain_ends_calls_that_take_too_long(start_frontend, limit_s):
    async with start_frontend(drain_s=0.2) as frontend:
        frontend.cluster.may_end.clear()
        call = frontend.generate()
        await frontend.cluster.draw_begun.wait()
        code = asyncio.create_task(call.code())
    assert frontend.cluster.draw_cancelled.is_set()
    assert await asyncio.wait_for(code, limit_s) in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


FROZEN_CLIENT = """
import sys, grpc, image_gen_pb2 as messages, image_gen_pb2_grpc as service
stub = service.ImageGenStub(grpc.insecure_channel(sys.argv[1]))
request = messages.GenerateRequest(height=8, width=8, num_inference_steps=1, guidance_scale=1)
stub.Generate(request, metadata=[("api-key", "key-of-alice")])
"""


async def test_a_client_that_freezes_is_noticed_and_its_job_cancelled(start_frontend, limit_s):
    async with start_frontend(keepalive_interval_s=1, keepalive_timeout_s=0.5) as frontend:
        frontend.cluster.may_end.clear()
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FROZEN_CLIENT, f"127.0.0.1:{frontend.grpc_port}"
        )
        try:
            await asyncio.wait_for(frontend.cluster.draw_begun.wait(), limit_s)
            client.send_signal(signal.SIGSTOP)
            await asyncio.wait_for(frontend.cluster.draw_cancelled.wait(), limit_s)
        finally:
            client.kill()
            await client.wait()


async def test_a_taken_grpc_port_is_named(start_frontend, taken_port):
    with pytest.raises(CannotListen, match=f"gRPC on 127.0.0.1 port {taken_port}: the port is taken"):
        async with start_frontend(grpc_port=taken_port):
            pass


async def test_a_taken_http_port_is_named(start_frontend, taken_port):
    with pytest.raises(CannotListen, match=f"HTTP on 127.0.0.1 port {taken_port}: the port is taken"):
        async with start_frontend(http_port=taken_port):
            pass


async def test_a_second_frontend_on_the_same_port_does_not_share_it(frontend, start_frontend):
    with pytest.raises(CannotListen, match="the port is taken"):
        async with start_frontend(grpc_port=frontend.grpc_port):
            pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_refused(host):
    with pytest.raises(CannotListen, match=f"cannot listen for gRPC on {host} port 0: "):
        require_free_port("gRPC", host, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
async def test_the_frontend_listens_where_it_is_told_and_finds_itself(start_frontend, host):
    async with start_frontend(
        grpc_host=host, http_host=host, insecure_allow_unencrypted_clients=True
    ) as frontend:
        answer = await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=frontend.key)
        assert answer.message == "Pong"
        assert (await frontend.get("/metrics"))[1]["grpc_alive"] is True


async def test_a_port_where_nobody_answers_is_not_alive():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with GrpcProbe(own_target("0.0.0.0", silent.getsockname()[1]), limit_s=0.3) as probe:
            assert await probe.answers() is False


def test_ipv6_addresses_get_brackets():
    assert authority("::1", 5) == "[::1]:5"
    assert own_target("::", 5) == "[::1]:5"
    assert own_target("10.0.0.7", 5) == "10.0.0.7:5"
