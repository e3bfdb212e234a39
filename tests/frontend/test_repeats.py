"""What a call's metadata says about repeats of it, and what is said about metadata that is not usable."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.api_keys import fingerprint
from frontend.repeats import Repeats, read_repeats

ALICE, BOB = fingerprint("key-of-alice"), fingerprint("key-of-bob")
KEY_ALLOWED = "1 to 128 printable ASCII characters"


def read(*entries, key_fingerprint=ALICE):
    return read_repeats(entries, key_fingerprint)


def with_key(key, *entries, **whose):
    return read(("idempotency-key", key), *entries, **whose)


# --- What is good ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (("api-key", "key-of-alice"), ("user-agent", "grpc")),
        (("idempotency-key-bin", b"key"), ("on-disconnect-bin", b"detach")),
        (("on-disconnect", "cancel"),),
    ],
)
def test_a_call_without_an_idempotency_key_has_no_repeats(entries):
    assert read(*entries) == Repeats(idempotency_hash=None, seed=None, detach=False)


def test_a_repeat_has_the_same_hash_and_seed():
    first = with_key("order 66")
    assert with_key("order 66") == first
    assert len(first.idempotency_hash) == 16
    assert 0 <= first.seed < 2**64
    assert not first.detach


def test_another_key_or_another_caller_has_another_hash_and_seed():
    different = [
        with_key("a"),
        with_key("b"),
        with_key("A"),
        with_key("a "),
        with_key("a", key_fingerprint=BOB),
        with_key("bc", key_fingerprint="a"),
        with_key("c", key_fingerprint="ab"),
    ]
    assert len({each.idempotency_hash for each in different}) == len(different)
    assert len({each.seed for each in different}) == len(different)


def test_the_hash_does_not_tell_the_seed():
    repeats = with_key("a")
    assert repeats.seed not in (
        int.from_bytes(repeats.idempotency_hash[:8]),
        int.from_bytes(repeats.idempotency_hash[8:]),
    )


@pytest.mark.parametrize(
    "key", ["!", "~", " ", "0", "k" * 128, "a key, with: all (sorts) of \"things\" & 'more'"]
)
def test_the_edges_are_inside(key):
    assert with_key(key).idempotency_hash


def test_a_job_goes_on_only_if_the_call_says_so():
    assert with_key("a", ("on-disconnect", "detach")).detach
    assert not with_key("a", ("on-disconnect", "cancel")).detach
    assert with_key("a", ("on-disconnect", "detach")).idempotency_hash == with_key("a").idempotency_hash


# --- What is bad -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "a text of 0 characters is out of range"),
        ("k" * 129, "a text of 129 characters is out of range"),
        ("é" * 5000, "a text of 5000 characters is out of range"),
        ("schlüssel", "a text of 9 characters is not printable ASCII"),
        ("a\tb", "a text of 3 characters is not printable ASCII"),
        ("a\x7fb", "a text of 3 characters is not printable ASCII"),
        ("\x00", "a text of 1 characters is not printable ASCII"),
    ],
)
def test_a_bad_key_is_explained(key, problem):
    (violation,) = with_key(key)
    assert violation.field == "metadata 'idempotency-key'"
    assert violation.message == f"metadata 'idempotency-key': {problem}, allowed is {KEY_ALLOWED}"


def test_two_keys_are_too_many_even_if_they_are_the_same():
    (violation,) = with_key("secret", ("idempotency-key", "secret"))
    assert violation.message == (
        f"metadata 'idempotency-key': 2 entries are too many, allowed is one of {KEY_ALLOWED}"
    )


@pytest.mark.parametrize(
    ("wish", "shown"),
    [
        ("", "''"),
        ("Detach", "'Detach'"),
        ("detach ", "'detach '"),
        ("cancel,detach", "'cancel,detach'"),
        ("x" * 33, "a text of 33 characters"),
    ],
)
def test_an_unknown_wish_is_explained(wish, shown):
    (violation,) = with_key("a", ("on-disconnect", wish))
    assert violation.field == "metadata 'on-disconnect'"
    assert violation.message == (
        f"metadata 'on-disconnect': {shown} is unknown, allowed is 'cancel' or 'detach'"
    )


def test_two_wishes_are_too_many():
    (violation,) = with_key("a", ("on-disconnect", "cancel"), ("on-disconnect", "detach"))
    assert violation.message == (
        "metadata 'on-disconnect': 2 entries are too many, allowed is one of 'cancel' or 'detach'"
    )


def test_a_job_that_nobody_could_ask_for_is_not_detached():
    (violation,) = read(("on-disconnect", "detach"))
    assert violation.message == (
        "metadata 'on-disconnect': 'detach' needs a metadata entry 'idempotency-key', "
        "allowed is 'cancel' without one"
    )


def test_all_that_is_wrong_is_said_at_once():
    named = [violation.field for violation in with_key("", ("on-disconnect", "perhaps"))]
    assert named == ["metadata 'idempotency-key'", "metadata 'on-disconnect'"]


def test_a_detached_call_with_a_bad_key_hears_of_its_key_only():
    (violation,) = with_key("", ("on-disconnect", "detach"))
    assert violation.field == "metadata 'idempotency-key'"


@given(st.text(max_size=140) | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=140))
def test_a_key_is_good_exactly_when_it_is_short_printable_ascii(key):
    good = 1 <= len(key) <= 128 and key.isascii() and key.isprintable()
    read_key = with_key(key)
    assert isinstance(read_key, Repeats) == good
    if not good:
        assert all(violation.message.isascii() for violation in read_key), "it quotes the key"
        assert all(len(violation.message) < 128 for violation in read_key)
