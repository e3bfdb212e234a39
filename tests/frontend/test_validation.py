"""Which requests become a job, and what is said about the others."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import image_gen_pb2
from frontend.validation import RequestLimits, ValidJob, shortest_float32, validate

GOOD = {"prompt": "a fox", "height": 64, "width": 48, "num_inference_steps": 4, "guidance_scale": 3.5}
DRAWN_SEED = 12345


def judge(limits=None, **changes):
    request = image_gen_pb2.GenerateRequest(**{**GOOD, **changes})
    return validate(request, limits or RequestLimits(), lambda: DRAWN_SEED)


def test_a_good_request_becomes_a_job_with_its_values():
    job = judge(seed=9)
    assert isinstance(job, ValidJob)
    found = (job.parameters.height, job.parameters.width, job.parameters.steps, job.parameters.guidance)
    assert (job.prompt, *found, job.parameters.seed) == ("a fox", 64, 48, 4, 3.5, 9)
    assert len(job.digest) == 16


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("height", 1),
        ("height", 1024),
        ("width", 1),
        ("width", 1024),
        ("num_inference_steps", 1),
        ("num_inference_steps", 20),
        ("guidance_scale", 1.0),
        ("guidance_scale", 10.0),
        ("prompt", ""),
        ("prompt", "\x00"),
        ("prompt", "x" * 8192),
        ("seed", 0),
        ("seed", 2**64 - 1),
    ],
)
def test_the_edges_are_inside(field, value):
    assert isinstance(judge(**{field: value}), ValidJob)


@pytest.mark.parametrize(
    ("field", "value", "shown", "allowed"),
    [
        ("height", 0, "0", "1 to 1024 pixels"),
        ("height", 1025, "1025", "1 to 1024 pixels"),
        ("height", -(2**31), "-2147483648", "1 to 1024 pixels"),
        ("width", 0, "0", "1 to 1024 pixels"),
        ("width", 2**31 - 1, "2147483647", "1 to 1024 pixels"),
        ("num_inference_steps", 0, "0", "1 to 20"),
        ("num_inference_steps", 21, "21", "1 to 20"),
        ("guidance_scale", 0.0, "0", "1.0 to 10.0"),
        ("guidance_scale", 0.3, "0.3", "1.0 to 10.0"),
        ("guidance_scale", 10.000001, "10.000001", "1.0 to 10.0"),
        ("guidance_scale", math.nan, "nan", "1.0 to 10.0"),
        ("guidance_scale", math.inf, "inf", "1.0 to 10.0"),
        ("guidance_scale", -math.inf, "-inf", "1.0 to 10.0"),
        ("prompt", "é" * 4097, "a text of 8194 bytes", "up to 8192 bytes of UTF-8"),
    ],
)
def test_what_is_outside_is_named_with_its_value_and_range(field, value, shown, allowed):
    (violation,) = judge(**{field: value})
    assert (violation.field, violation.value, violation.allowed) == (field, shown, allowed)
    assert field in violation.message


def test_all_bad_fields_are_named_at_once():
    empty = validate(image_gen_pb2.GenerateRequest(), RequestLimits(), lambda: DRAWN_SEED)
    assert [violation.field for violation in empty] == [
        "height",
        "width",
        "num_inference_steps",
        "guidance_scale",
    ]


@pytest.mark.parametrize("lowest", [0.1, 0.3, 0.7, 1.1])
def test_the_lower_bound_of_guidance_is_accepted_as_the_wire_rounds_it(lowest):
    limits = RequestLimits(guidance_min=lowest)
    assert isinstance(judge(limits, guidance_scale=lowest), ValidJob)
    assert not isinstance(judge(limits, guidance_scale=lowest - 0.001), ValidJob)


def test_a_seed_is_drawn_only_when_there_is_none():
    assert judge().parameters.seed == DRAWN_SEED
    assert judge(seed=0).parameters.seed == 0


def test_the_digest_tells_what_was_asked_for():
    same = judge().digest
    differing = [
        judge(**change).digest
        for change in (
            {"prompt": "a cat"},
            {"height": 65},
            {"width": 49},
            {"height": 48, "width": 64},
            {"num_inference_steps": 5},
            {"guidance_scale": 3.6},
            {"seed": DRAWN_SEED},
            {"seed": 0},
        )
    ]
    assert judge().digest == same
    assert len({same, *differing}) == len(differing) + 1


def test_the_digest_does_not_depend_on_the_drawn_seed():
    request = image_gen_pb2.GenerateRequest(**GOOD)
    first, second = (validate(request, RequestLimits(), lambda seed=seed: seed) for seed in (1, 2))
    assert first.digest == second.digest


@given(
    prompt=st.text(max_size=3000),
    height=st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 1030),
    width=st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 1030),
    steps=st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 25),
    guidance=st.floats(width=32),
    seed=st.none() | st.integers(0, 2**64 - 1),
)
def test_a_request_is_valid_exactly_when_every_field_is(prompt, height, width, steps, guidance, seed):
    request = image_gen_pb2.GenerateRequest(
        prompt=prompt,
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        seed=seed,
    )
    bad = {
        "prompt": len(prompt.encode()) > 8192,
        "height": not 1 <= height <= 1024,
        "width": not 1 <= width <= 1024,
        "num_inference_steps": not 1 <= steps <= 20,
        "guidance_scale": not 1 <= guidance <= 10,
    }
    result = validate(request, RequestLimits(), lambda: DRAWN_SEED)
    named = set() if isinstance(result, ValidJob) else {violation.field for violation in result}
    assert named == {field for field, is_bad in bad.items() if is_bad}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_shown_number_is_the_number(value):
    text = shortest_float32(value)
    assert struct.pack("<f", float(text)) == struct.pack("<f", value)
