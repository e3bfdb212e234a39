"""What waits to be handled: in its order, bounded, and each peer's latest report alone."""

import pytest
from samples.wire import frontend_report, submit, worker_report

from proto import backlog
from proto.backlog import Backlog
from proto.codec import encode, is_report


@pytest.fixture
def waiting():
    """Messages are called after their peer; reports with a number, and what is nobody's in small letters."""
    return Backlog[str](lambda message: (message[0], message[1:].isdigit()) if message[0].isupper() else None)


def taken(waiting):
    return [waiting.take() for _ in range(len(waiting))]


def test_first_in_first_out(waiting):
    for message in ("a", "b", "a"):
        waiting.add(message, 1)
    assert taken(waiting) == ["a", "b", "a"]
    with pytest.raises(KeyError):
        waiting.take()


def test_a_report_takes_the_place_of_those_of_its_peer_that_it_follows(waiting):
    for message in ("A1", "other", "B1", "A2", "A3"):
        waiting.add(message, 1)
    assert taken(waiting) == ["other", "B1", "A3"]
    assert waiting.superseded == 2


def test_what_a_peer_has_said_between_two_reports_keeps_its_place(waiting):
    for message in ("A1", "A2", "A submits", "A3", "A4", "B1"):
        waiting.add(message, 1)
    assert taken(waiting) == ["A2", "A submits", "A4", "B1"]
    assert waiting.superseded == 2


def test_a_report_that_was_taken_is_superseded_by_none(waiting):
    waiting.add("A1", 1)
    assert taken(waiting) == ["A1"]
    waiting.add("A2", 1)
    assert taken(waiting) == ["A2"]
    assert waiting.superseded == 0


def test_it_is_bounded_by_number_and_by_bytes(waiting, monkeypatch):
    monkeypatch.setattr(backlog, "MAX_MESSAGES", 3)
    for message in ("A1", "A2", "b", "c"):
        assert not waiting.is_full
        waiting.add(message, 1)
    assert waiting.is_full
    waiting.take()
    assert not waiting.is_full
    waiting.add("A3", backlog.MAX_BYTES)
    assert waiting.is_full
    waiting.add("A4", 1)
    assert taken(waiting) == ["b", "c", "A4"]
    assert not waiting.is_full


def test_what_is_cleared_counts_no_more(waiting):
    waiting.add("A1", backlog.MAX_BYTES)
    waiting.clear()
    assert not waiting
    assert not waiting.is_full
    waiting.add("A2", 1)
    assert taken(waiting) == ["A2"]
    assert waiting.superseded == 0


def test_which_messages_are_reports():
    assert [
        is_report(bytes(encode(message)[0])) for message in (worker_report(), frontend_report(), submit())
    ] == [
        True,
        True,
        False,
    ]
    assert not is_report(b"")
