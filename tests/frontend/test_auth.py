"""Who is let in, and what the others learn: before anything of theirs is looked at."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status
from structlog.testing import capture_logs

import image_gen_pb2
from frontend.auth import (
    AcceptedKey,
    ApiKeys,
    KeyProblem,
    RefusalLog,
    fingerprint,
    parse_api_keys,
)

GARBAGE = b"\xff\xff\xff\xff"
METHODS = [
    "/imagegen.ImageGen/Ping",
    "/imagegen.ImageGen/Generate",
    "/imagegen.ImageGen/Metrics",
    "/imagegen.ImageGen/NoSuchMethod",
    "/no.such.Service/Method",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.HealthX/Check",
]


def reason_of(error):
    status = rpc_status.from_call(_SyncView(error))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


class _SyncView:
    """An AioRpcError as grpc_status wants to see it."""

    def __init__(self, error):
        self.code, self.details = error.code, error.details
        self.trailing_metadata = lambda: tuple(error.trailing_metadata())


# --- Keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("client1", ("client1",)),
        ("client1,client2", ("client1", "client2")),
        (" a ,\tb\n", ("a", "b")),
        ("!~", ("!~",)),
    ],
)
def test_keys_are_separated_by_commas(text, keys):
    assert parse_api_keys(text) == keys


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at least one key"),
        ("  ", "at least one key"),
        ("secret,", "entry 2 is empty"),
        (",secret", "entry 1 is empty"),
        ("secret,other,secret", "entry 3 repeats entry 1"),
        ("sec ret", "entry 1: a key consists of printable ASCII"),
        ("sécret", "entry 1: a key consists of printable ASCII"),
        ("secret" * 50, "entry 1: a key has at most 256 characters"),
    ],
)
def test_an_unusable_list_is_refused_without_quoting_it(text, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        parse_api_keys(text)
    assert "secret" not in str(refusal.value)


def test_a_fingerprint_is_stable_and_is_not_the_key():
    assert fingerprint("client1") == fingerprint("client1")
    assert fingerprint("client1") != fingerprint("client2")
    assert len(fingerprint("client1")) == 16
    assert "client1" not in fingerprint("client1")


def test_every_known_key_is_accepted_under_its_fingerprint():
    keys = ApiKeys(["a", "b"])
    assert keys.check(["a"]) == AcceptedKey(fingerprint("a"))
    assert keys.check(["b"]) == AcceptedKey(fingerprint("b"))
    assert keys.check(["c"]) is KeyProblem.WRONG
    assert keys.check([""]) is KeyProblem.WRONG
    assert keys.check(["a "]) is KeyProblem.WRONG
    assert keys.check([]) is KeyProblem.MISSING
    assert keys.check(["a", "a"]) is KeyProblem.SEVERAL


def test_refusals_are_logged_at_most_once_in_an_interval():
    now = [0.0]
    refusals = RefusalLog(interval_s=5.0, clock=lambda: now[0])
    with capture_logs() as lines:
        for now[0] in (0.0, 1.0, 2.0, 6.0, 7.0):
            refusals.note(KeyProblem.WRONG, "/x", "ipv4:1.2.3.4:5")
    assert [line["unlogged_before"] for line in lines] == [0, 2]
    assert lines[0]["peer"] == "ipv4:1.2.3.4:5"


# --- Over the wire ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
async def test_without_a_key_every_method_is_refused_even_unknown_ones(frontend, method):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await frontend.channel.unary_unary(method)(GARBAGE)
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "send it as the metadata entry 'api-key'" in refusal.value.details()
    assert reason_of(refusal.value) == "API_KEY_MISSING"


@pytest.mark.parametrize(
    "key", ["wrong", "", "key-of-alicf", "key-of-alic", "KEY-OF-ALICE", "key-of-alice,key-of-bob"]
)
async def test_a_wrong_key_is_refused_and_not_repeated(frontend, key):
    with capture_logs() as lines, pytest.raises(grpc.aio.AioRpcError) as refusal:
        await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=(("api-key", key),))
    assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(refusal.value) == "API_KEY_WRONG"
    assert lines[0]["event"] == "call refused"
    assert lines[0]["method"] == "/imagegen.ImageGen/Ping"
    if key:
        assert key not in str(lines) + refusal.value.details()


async def test_two_keys_at_once_are_refused(frontend):
    both = (("api-key", "key-of-alice"), ("api-key", "key-of-bob"))
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=both)
    assert reason_of(refusal.value) == "API_KEY_AMBIGUOUS"


@pytest.mark.parametrize("key", ["key-of-alice", "key-of-bob"])
async def test_every_right_key_is_let_in(frontend, key):
    answer = await frontend.stub.Ping(image_gen_pb2.PingRequest(), metadata=(("api-key", key),))
    assert answer.message == "Pong"


async def test_an_unauthenticated_call_is_refused_before_its_request_has_arrived(frontend):
    """It never sends one: whoever waited for it, let alone parsed it, would wait for ever."""
    call = frontend.channel.stream_unary("/imagegen.ImageGen/Generate")(metadata=(("api-key", "wrong"),))
    assert await asyncio.wait_for(call.code(), 10) is grpc.StatusCode.UNAUTHENTICATED


async def test_garbage_is_parsed_only_for_those_with_a_key(frontend):
    generate = frontend.channel.unary_unary("/imagegen.ImageGen/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as outside:
        await generate(GARBAGE, metadata=(("api-key", "wrong"),))
    assert outside.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as inside:
        await generate(GARBAGE, metadata=frontend.key)
    assert inside.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert inside.value.details() == "the request is not a valid imagegen.GenerateRequest message"
    assert not frontend.cluster.draws


async def test_a_prompt_that_is_no_utf8_is_an_invalid_argument(frontend):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await frontend.channel.unary_unary("/imagegen.ImageGen/Generate")(
            b"\x0a\x02\xff\xfe", metadata=frontend.key
        )
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_with_a_key_is_unimplemented(frontend):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await frontend.channel.unary_unary("/imagegen.ImageGen/Nope")(b"", metadata=frontend.key)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_health_needs_no_key(frontend):
    check = frontend.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    assert (await check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_lists_the_services_to_those_with_a_key(frontend):
    reflect = frontend.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [answer async for answer in reflect(iter([question]), metadata=frontend.key)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert {"imagegen.ImageGen", "grpc.health.v1.Health"} <= names
    # Without a question: writing into a call that has ended already looks like an error of the client's.
    assert await reflect().code() is grpc.StatusCode.UNAUTHENTICATED
