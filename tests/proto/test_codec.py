"""Frames <-> messages: every message comes back as it was, and no bytes whatever do harm."""

import dataclasses
import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples.strategies import BY_TYPE, REPEATABLE, messages
from samples.wire import (
    claim,
    failure_outcome,
    frontend_report,
    frontend_view,
    identifier,
    image_outcome,
    start,
    submit,
    worker_report,
    worker_view,
)

from proto.codec import MAX_HEADER_BYTES, MAX_KEYS, ProtocolViolation, ViolationKind, decode, encode
from proto.failures import FailureCode, RefusalReason
from proto.messages import (
    MAX_IMAGE_BYTES,
    MAX_LISTED,
    MAX_PROMPT_BYTES,
    HeldOutcome,
    JobFailed,
    Outcome,
    Refuse,
    Submit,
    TraceContext,
)

MIB = 1024 * 1024
WORKER_REPORT, WORKER_VIEW, FRONTEND_REPORT, SUBMIT, OUTCOME, REFUSE = 1, 2, 3, 5, 7, 8


def prefix(command: int, version: int = 1, magic: bytes = b"FLX1", reserved: bytes = b"\0\0") -> bytes:
    return magic + bytes([version, command]) + reserved


def header_of(message: object) -> dict:
    return msgpack.unpackb(encode(message)[1])


def violation(*frames: bytes) -> ProtocolViolation:
    with pytest.raises(ProtocolViolation) as caught:
        decode(frames)
    return caught.value


def with_header(message: object, **changes: object) -> list[bytes]:
    """The message's frames, with some keys of its header set to something else."""
    first, _, *body = encode(message)
    return [first, msgpack.packb({**header_of(message), **changes}), *body]


def without(message: object, key: str) -> list[bytes]:
    first, _, *body = encode(message)
    return [first, msgpack.packb({k: v for k, v in header_of(message).items() if k != key}), *body]


# --- What is valid -----------------------------------------------------------------------------


@REPEATABLE
@given(message=messages)
def test_every_message_comes_back_as_it_was(message):
    assert decode(encode(message)) == message


@pytest.mark.parametrize("kind", BY_TYPE, ids=lambda kind: kind.__name__)
def test_every_command_has_an_example(kind):
    @REPEATABLE
    @given(message=BY_TYPE[kind])
    def comes_back(message):
        assert type(message) is kind
        assert decode([memoryview(frame) for frame in encode(message)]) == message

    comes_back()


@pytest.mark.parametrize(
    "message",
    [worker_report(), worker_view(), frontend_report(), submit(), image_outcome(b"e" * 16), frontend_view()],
    ids=lambda message: type(message).__name__,
)
def test_what_has_a_default_may_be_missing(message):
    optional = [
        field.name
        for field in dataclasses.fields(message)
        if field.default is not dataclasses.MISSING and field.name not in {"body", "image"}
    ]
    assert optional
    first, _, *body = encode(message)
    header = {key: value for key, value in header_of(message).items() if key not in optional}
    defaults = {f.name: f.default for f in dataclasses.fields(message) if f.name in optional}
    assert decode([first, msgpack.packb(header), *body]) == dataclasses.replace(message, **defaults)


def test_nil_and_missing_mean_the_same():
    report = worker_report()
    for key in ("model", "running", "readings"):
        assert decode(with_header(report, **{key: None})) == decode(without(report, key)) == report


def test_a_body_may_be_a_view_into_somebody_elses_memory():
    png = memoryview(bytes(range(256)) * 4)
    sent = image_outcome(identifier("e"), body=png)
    received = decode([memoryview(bytes(frame)) for frame in encode(sent)])
    assert isinstance(received, Outcome)
    assert bytes(received.body) == bytes(png)


def test_an_unknown_key_is_ignored():
    assert decode(with_header(worker_report(), colour="red", shapes=[{"a": None}])) == worker_report()
    nested = {**header_of(submit())["claim"], "new": 1}
    assert decode(with_header(submit(), claim=nested)) == submit()


def test_of_a_key_that_comes_twice_one_counts():
    pairs = [*header_of(Refuse(reason=RefusalReason.NO_WORKERS)).items(), ("detail", "second")]
    packer = msgpack.Packer()
    twice = packer.pack_map_header(len(pairs)) + b"".join(
        packer.pack(part) for pair in pairs for part in pair
    )
    assert decode([prefix(REFUSE), twice]) == Refuse(reason=RefusalReason.NO_WORKERS, detail="second")


def test_the_body_cannot_be_smuggled_in_the_header():
    assert decode(with_header(submit(), body=b"a dog")) == submit()


def test_refuse_is_told_by_its_reason_alone():
    """The one command whose layout every version shares."""
    header = msgpack.packb({"reason": "VERSION_MISMATCH"})
    assert decode([prefix(REFUSE), header]) == Refuse(reason=RefusalReason.VERSION_MISMATCH)


# --- What is not -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4, 10])
def test_a_message_has_two_or_three_frames(count):
    assert violation(*[prefix(WORKER_VIEW)] * count).kind is ViolationKind.FRAMING


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"FLX1",
        prefix(WORKER_REPORT)[:7],
        prefix(WORKER_REPORT) + b"\0",
        prefix(WORKER_REPORT, magic=b"FLX2"),
        prefix(WORKER_REPORT, magic=b"flx1"),
        prefix(WORKER_REPORT, reserved=b"\0\1"),
        prefix(WORKER_REPORT, reserved=b"\1\0"),
        bytes(8),
        bytes(16 * MIB),
    ],
    ids=lambda frame: f"{bytes(frame[:9])!r} of {len(frame)}",
)
def test_another_prefix_is_something_else(frame):
    assert violation(frame, encode(worker_report())[1]).kind is ViolationKind.FRAMING


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_is_told_apart_whatever_follows(version):
    assert violation(prefix(200, version=version), b"\xc1 not ours").kind is ViolationKind.VERSION


@pytest.mark.parametrize("command", [0, 12, 255])
def test_an_unknown_command(command):
    caught = violation(prefix(command), b"\x80")
    assert caught.kind is ViolationKind.COMMAND
    assert str(command) in str(caught)


def test_a_body_is_there_exactly_where_it_belongs():
    assert violation(*encode(worker_report()), b"body").kind is ViolationKind.FRAMING
    assert violation(*encode(submit())[:2]).kind is ViolationKind.FRAMING
    assert violation(*encode(start())[:2]).kind is ViolationKind.FRAMING
    assert violation(*encode(image_outcome(b"e" * 16))[:2]).kind is ViolationKind.FRAMING


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        msgpack.packb([]),
        msgpack.packb(None),
        msgpack.packb("text"),
        msgpack.packb({1: 2}, strict_types=True),
        msgpack.packb({b"seq": 1}),
        msgpack.packb({"seq": msgpack.ExtType(1, b"x")}),
        msgpack.packb({"seq": msgpack.Timestamp(1)}),
        msgpack.packb({**header_of(worker_report()), "unknown": msgpack.ExtType(1, b"x")}),
        msgpack.packb({**header_of(worker_report()), "unknown": msgpack.ExtType(1, b"")}),
        msgpack.packb({**header_of(worker_report()), "unknown": [msgpack.Timestamp(1)]}),
        b"\x81\xa1\xff\x01",
        b"\x81\xa3seq\xa2\xc3\x28",
        b"\x81\xa3seq",
        b"\x81\xa3seq\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa3seq\xc6\xff\xff\xff\xff",
        b"\x81\xa3seq\xdb\xff\xff\xff\xff",
        b"\x81\xa3seq\xc9\xff\xff\xff\xff\x01",
        b"\x81\xa3seq" + b"\x91" * (MIB - 10),
        b"\x81\xa3seq" + b"\x81\xa1a" * 100_000,
        b"\x91" * 100_000 + b"\xc0",
    ],
    ids=lambda header: f"{header[:12]!r} of {len(header)}",
)
def test_a_header_that_is_no_map_of_ours(header):
    assert violation(prefix(WORKER_REPORT), header).kind is ViolationKind.HEADER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", b"worker"),
        ("worker_id", ""),
        ("worker_id", "w" * 129),
        ("worker_id", 1),
        ("incarnation", "i" * 16),
        ("incarnation", b"i" * 15),
        ("incarnation", b"i" * 17),
        ("incarnation", "A" * 22 + "=="),
        ("incarnation", None),
        ("seq", True),
        ("seq", 1.0),
        ("seq", "1"),
        ("seq", -1),
        ("seq", 2**63),
        ("host", None),
        ("phase", "asleep"),
        ("phase", 1),
        ("phase", None),
        ("activity", "a" * 1025),
        ("percent", 101),
        ("percent", False),
        ("model", []),
        ("model", {}),
        ("running", "nothing"),
        ("held", None),
        ("held", {}),
        ("held", "abc"),
        ("held", [None]),
        ("readings", {"cpu_percent": float("nan"), "ram_used_mb": 1.0, "ram_total_mb": 1.0}),
        ("readings", {"cpu_percent": float("inf"), "ram_used_mb": 1.0, "ram_total_mb": 1.0}),
        ("readings", {"cpu_percent": -0.5, "ram_used_mb": 1.0, "ram_total_mb": 1.0}),
        ("readings", {"cpu_percent": "1", "ram_used_mb": 1.0, "ram_total_mb": 1.0}),
        ("readings", {"cpu_percent": True, "ram_used_mb": 1.0, "ram_total_mb": 1.0}),
        ("engine_restarts", None),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_a_value_of_another_type_or_out_of_range_is_malformed_and_named(field, value):
    caught = violation(*with_header(worker_report(), **{field: value}))
    assert caught.kind is ViolationKind.HEADER
    assert f"WorkerReport.{field}" in str(caught)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accepted", 1),
        ("accepted", "true"),
        ("key_job_limit", 0),
        ("key_job_limit", 1001),
        ("parameters", {**header_of(submit())["parameters"], "height": 0}),
        ("parameters", {**header_of(submit())["parameters"], "width": 8193}),
        ("parameters", {**header_of(submit())["parameters"], "steps": True}),
        ("parameters", {**header_of(submit())["parameters"], "guidance": float("nan")}),
        ("parameters", {**header_of(submit())["parameters"], "guidance": float("-inf")}),
        ("parameters", {**header_of(submit())["parameters"], "seed": 2**64 - 1 + 1 - 2**64 - 1}),
        ("claim", {**header_of(submit())["claim"], "remaining_ms": 2**53 + 1}),
        ("claim", {**header_of(submit())["claim"], "attempts": 1001}),
    ],
    ids=lambda part: repr(part)[:40],
)
def test_what_travels_with_a_job_is_checked_as_well(field, value):
    caught = violation(*with_header(submit(), **{field: value}))
    assert caught.kind is ViolationKind.HEADER
    assert f"Submit.{field}" in str(caught)


@pytest.mark.parametrize("field", ["inference_time_s", "steps_time_s"])
def test_times_can_be_added_up(field):
    """Their sums are told, and lines are laid through them: what is finite may have none."""
    image = image_outcome(identifier("e"))
    told = {**header_of(image)["image"], field: 1e308}
    assert f"Outcome.image.{field}" in str(violation(*with_header(image, image=told)))


@pytest.mark.parametrize(
    "key", [field.name for field in dataclasses.fields(Submit) if field.default is dataclasses.MISSING]
)
def test_what_has_no_default_must_be_there(key):
    if key == "body":
        return
    told = str(violation(*without(submit(), key)))
    assert told.startswith("header: Submit: ")
    assert key in told


def test_a_violation_never_quotes_the_value():
    """Its text goes into logs; a prompt or a key that came astray must not."""
    wish = "a secret wish - at `$.seq`"
    for frames in (
        with_header(worker_report(), worker_id={"prompt": wish}),
        with_header(worker_report(), phase=wish),
    ):
        assert "secret" not in str(violation(*frames))


def test_an_outcome_is_either_an_image_or_a_failure():
    image = image_outcome(identifier("e"))
    failure = failure_outcome(identifier("e"), JobFailed(code=FailureCode.CANCELLED))
    failed = header_of(failure)["failure"]
    assert violation(*with_header(image, image=None)).kind is ViolationKind.HEADER
    assert violation(*with_header(image, failure=failed)).kind is ViolationKind.HEADER
    assert violation(*encode(image)[:2], b"").kind is ViolationKind.BODY
    assert violation(*encode(failure)[:2], b"png").kind is ViolationKind.BODY


@pytest.mark.parametrize("body", [b"\xff", b"\xc3(", b"ok\xed\xa0\x80", b"\xf4\x90\x80\x80"])
@pytest.mark.parametrize("message", [submit(), start()], ids=lambda message: type(message).__name__)
def test_a_prompt_is_utf8(message, body):
    assert violation(*encode(message)[:2], body).kind is ViolationKind.BODY
    assert violation(*encode(message)[:2], memoryview(body)).kind is ViolationKind.BODY


# --- Limits ------------------------------------------------------------------------------------


def padded(size_bytes: int) -> bytes:
    """A valid header of a Refuse, of exactly this size."""
    fields = {"reason": "NO_WORKERS", "padding": b""}
    padding = size_bytes - len(msgpack.packb({**fields, "padding": bytes(2**16)})) + 2**16
    return msgpack.packb({**fields, "padding": bytes(padding)})


def test_a_header_may_have_a_mebibyte():
    header = padded(MAX_HEADER_BYTES)
    assert len(header) == MAX_HEADER_BYTES
    assert isinstance(decode([prefix(REFUSE), header]), Refuse)
    assert violation(prefix(REFUSE), padded(MAX_HEADER_BYTES + 1)).kind is ViolationKind.SIZE


def test_a_map_may_have_64_keys():
    def header(keys: int) -> bytes:
        extra = {f"extra {n}": n for n in range(keys - 1)}
        return msgpack.packb({"reason": "NO_WORKERS", **extra})

    assert isinstance(decode([prefix(REFUSE), header(MAX_KEYS)]), Refuse)
    assert violation(prefix(REFUSE), header(MAX_KEYS + 1)).kind is ViolationKind.HEADER


def test_a_list_may_have_4096_entries():
    def frames(entries: int) -> list[bytes]:
        listed = [identifier(n) for n in range(entries)]
        return with_header(frontend_report(), jobs=listed)

    decoded = decode(frames(MAX_LISTED))
    assert len(decoded.jobs) == MAX_LISTED
    assert violation(*frames(MAX_LISTED + 1)).kind is ViolationKind.HEADER


def test_a_prompt_may_have_8_kibibytes():
    frames = encode(submit())[:2]
    assert decode([*frames, b"p" * MAX_PROMPT_BYTES]).body == b"p" * MAX_PROMPT_BYTES
    assert violation(*frames, b"p" * (MAX_PROMPT_BYTES + 1)).kind is ViolationKind.SIZE


def test_an_image_may_have_16_mebibytes():
    frames = encode(image_outcome(identifier("e")))[:2]
    image = bytes(MAX_IMAGE_BYTES + 1)
    assert len(decode([*frames, memoryview(image)[1:]]).body) == MAX_IMAGE_BYTES
    assert violation(*frames, image).kind is ViolationKind.SIZE


def test_the_desks_largest_report_fits():
    full = tuple(identifier(n) for n in range(MAX_LISTED))
    assert decode(encode(frontend_report(jobs=full))) == frontend_report(jobs=full)


@pytest.mark.parametrize(
    "message",
    [
        submit(body=b"p" * (MAX_PROMPT_BYTES + 1)),
        start(body=b"p" * (MAX_PROMPT_BYTES + 1)),
        image_outcome(identifier("e"), body=bytes(MAX_IMAGE_BYTES + 1)),
        worker_report(
            held=(HeldOutcome(execution_id=b"e" * 16, claim=claim(), failure=None, size_bytes=1),) * 8000
        ),
    ],
    ids=["submit", "start", "outcome", "report"],
)
def test_our_own_message_that_exceeds_a_limit_is_our_own_bug(message):
    with pytest.raises(ValueError, match=f"{type(message).__name__}.*bytes, at most"):
        encode(message)


# --- Whatever comes ----------------------------------------------------------------------------


def survives(frames: list[bytes]) -> None:
    try:
        message = decode(frames)
    except ProtocolViolation as caught:
        text = str(caught)
    else:
        text = ""
        assert type(message) in BY_TYPE
        assert decode(encode(message)) == message
    assert len(text) < 2000


@REPEATABLE
@given(frames=st.lists(st.binary(max_size=200), max_size=4))
def test_arbitrary_frames_do_no_harm(frames):
    survives(frames)


@REPEATABLE
@given(command=st.integers(0, 13), header=st.binary(max_size=300), body=st.none() | st.binary(max_size=50))
def test_arbitrary_headers_do_no_harm(command, header, body):
    survives([prefix(command), header, *([] if body is None else [body])])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@REPEATABLE
@given(message=messages, values=st.lists(values, min_size=1, max_size=3), random=st.randoms())
def test_a_message_with_wrong_values_does_no_harm(message, values, random):
    first, _, *body = encode(message)
    header = header_of(message)
    place = header
    for value in values:
        key = random.choice(sorted(place))
        if isinstance(place[key], dict) and place[key] and random.random() < 0.7:
            place = place[key]
        else:
            place[key] = value
    survives([first, msgpack.packb(header), *body])


@REPEATABLE
@given(
    message=messages,
    edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5),
    cut=st.integers(0),
)
def test_a_message_with_damaged_bytes_does_no_harm(message, edits, cut):
    frames = [bytearray(frame) for frame in encode(message)]
    for place, value in edits:
        frame = frames[place % len(frames)]
        if frame:
            frame[place % len(frame)] = value
    damaged = frames[cut % len(frames)]
    if cut % 3 == 0:
        del damaged[cut % (len(damaged) + 1) :]
    survives([bytes(frame) for frame in frames])


@pytest.mark.parametrize(
    "header",
    [
        b"\x81\xa1k" + (b"\xdc\x10\x00" * (MIB // 3))[: MIB - 10],
        b"\x81\xa1k\xdc\x10\x00" + (b"\xdc\x0f\xff" + b"\x90" * 4095) * 16,
        b"\x81\xa1k\xdc\x10\x00" + (b"\xdc\x00\xff" + b"\x80" * 255) * 256,
        b"\x81\xa1k\xc6\x7f\xff\xff\xff" + bytes(1000),
    ],
    ids=["deep", "lists", "maps", "a length that lies"],
)
def test_a_header_costs_no_more_memory_than_a_multiple_of_its_size(header):
    tracemalloc.start()
    try:
        violation(prefix(REFUSE), header)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB + 120 * len(header)
    finally:
        tracemalloc.stop()


# --- What is not there -------------------------------------------------------------------------


def test_a_call_that_is_not_traced_has_no_byte_of_it() -> None:
    (_, header, _) = encode(submit())
    assert b"trace" not in bytes(header)
    assert b"execution_id" not in bytes(header), "nor of anything else that is nil"


def test_a_context_arrives_as_it_was_sent() -> None:
    trace = TraceContext(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="vendor=1")
    assert decode(encode(submit(trace=trace))) == submit(trace=trace)


@pytest.mark.parametrize(
    "wrong", [{"traceparent": "a" * 56}, {"traceparent": "a" * 55, "tracestate": "s" * 513}]
)
def test_a_context_has_its_bounds(wrong: dict[str, str]) -> None:
    frames = encode(submit(trace=TraceContext(**wrong)))
    with pytest.raises(ProtocolViolation, match=r"trace\."):
        decode(frames)
