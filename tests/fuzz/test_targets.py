"""A short part of the fuzz run: what earlier runs have kept, and a few new inputs for each target."""

from random import Random

import pytest
from fuzz.damage import damaged_bytes
from fuzz.target import Target
from fuzz.targets import all_targets
from hypothesis import given, settings
from hypothesis import strategies as st

NEW_INPUTS = 150
TARGETS = all_targets()
TRIED = [target for target in TARGETS.values() if target.property_test is None]


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_what_was_found_once_is_harmless(target: Target) -> None:
    beginnings = target.beginnings()
    assert beginnings or target.property_test, "nothing to begin with"
    for data in beginnings:
        target.check(data)


@pytest.mark.parametrize("target", TRIED, ids=lambda target: target.name)
def test_inputs_that_are_nearly_right_are_harmless(target: Target) -> None:
    examples = max(1, round(NEW_INPUTS * min(target.share, 2.0)))
    beginnings = target.beginnings()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(start=st.sampled_from(beginnings), seed=st.integers(0, 2**32 - 1))
    def harmless(start: bytes, seed: int) -> None:
        random = Random(seed)
        target.check((target.mutate or changed)(start, random))

    harmless()


@pytest.mark.parametrize(
    "target", [each for each in TARGETS.values() if each.property_test], ids=lambda each: each.name
)
def test_whatever_peers_say_is_harmless(target: Target) -> None:
    assert target.property_test is not None
    target.property_test()


def changed(data: bytes, random: Random) -> bytes:
    return damaged_bytes(data, random)
