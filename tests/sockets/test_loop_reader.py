"""A reader that has more than it can handle at once: what it drops, and what it says of it."""

import pytest
import zmq

from proto import backlog
from proto.loop_reader import HANDLED_AT_ONCE, LoopReader


@pytest.fixture
def pair(endpoint):
    """Two ends in one process: what one has sent is at the other one at once."""
    context = zmq.Context.instance()
    # Named anew each time: libzmq frees a name some time after its socket was closed.
    name = f"inproc://{endpoint}"
    with context.socket(zmq.PAIR) as ours, context.socket(zmq.PAIR) as theirs:
        for each in (ours, theirs):
            each.set(zmq.LINGER, 0)
        ours.bind(name)
        theirs.connect(name)
        yield ours, theirs


async def test_all_that_has_come_is_taken_before_any_of_it_is_handled(pair, until):
    ours, theirs = pair
    handled, told = [], []
    for n in range(3 * HANDLED_AT_ONCE):
        theirs.send_multipart([b"report" if n % 2 else b"other", b"%d" % n])
    reader = LoopReader(
        ours,
        lambda frames: handled.append(int(frames[1].bytes)),
        speaker=lambda frames: (b"peer", True) if frames[0].bytes == b"report" else None,
    )
    others = list(range(0, 3 * HANDLED_AT_ONCE, 2))
    await until(lambda: handled == [*others, 3 * HANDLED_AT_ONCE - 1])
    assert reader.superseded == 3 * HANDLED_AT_ONCE // 2 - 1
    assert told == []
    reader.close()


async def test_it_says_until_when_it_has_handled_all_and_when_it_has_caught_up(pair, until):
    ours, theirs = pair
    story = []
    reader = LoopReader(ours, lambda _: story.append("handled"), on_heard_until=story.append)
    begun_at = reader._heard_until
    for _ in range(2 * HANDLED_AT_ONCE):
        theirs.send(b"")
    await until(lambda: story.count("handled") == 2 * HANDLED_AT_ONCE)
    first, *rest = story
    assert begun_at <= first
    assert set(rest) == {"handled"}, "one word for what was taken together"
    theirs.send(b"")
    await until(lambda: story[-1] is None)
    assert story[-2] == "handled", "caught up when the last one was handled"
    theirs.send(b"")
    await until(lambda: story[-1] == "handled")
    assert [word for word in story if word != "handled"] == [first, None]
    reader.close()


async def test_a_reader_that_is_closed_while_it_handles_stops(pair, until):
    ours, theirs = pair
    handled = []

    def on_message(_frames):
        handled.append(1)
        reader.close()

    for _ in range(10):
        theirs.send(b"")
    reader = LoopReader(ours, on_message)
    await until(lambda: handled)
    assert reader._look_again is None
    assert handled == [1]
    assert not reader._backlog, "megabytes may be kept until the garbage collector comes"


async def test_what_is_beyond_the_bound_of_the_backlog_is_read_when_there_is_room(pair, until, monkeypatch):
    monkeypatch.setattr(backlog, "MAX_MESSAGES", 10)
    ours, theirs = pair
    handled = []
    for n in range(35):
        theirs.send(b"%d" % n)
    reader = LoopReader(ours, lambda frames: handled.append(int(frames[0].bytes)))
    await until(lambda: len(handled) == 35)
    assert handled == list(range(35))
    reader.close()


async def test_a_sign_that_was_swallowed_while_a_backlog_is_handled_is_made_up_for(pair, until):
    """As by an answer to the first of many messages, whose last ones get none."""
    ours, theirs = pair
    handled = []

    def on_message(frames):
        handled.append(frames[0].bytes)
        if len(handled) == 1:
            theirs.send(b"late")
            ours.get(zmq.EVENTS)
            reader.look_soon()

    for _ in range(2 * HANDLED_AT_ONCE):
        theirs.send(b"")
    reader = LoopReader(ours, on_message)
    await until(lambda: handled[-1:] == [b"late"])
    reader.close()


async def test_a_few_large_messages_that_fill_the_backlog_are_not_all_that_has_come(pair, until, monkeypatch):
    monkeypatch.setattr(backlog, "MAX_BYTES", 30)
    ours, theirs = pair
    story = []
    for _ in range(5):
        theirs.send(10 * b"x")
    reader = LoopReader(ours, lambda _: story.append("handled"), on_heard_until=story.append)
    begun_at = reader._heard_until
    await until(lambda: story[-1:] == [None])
    assert story == [begun_at, *3 * ["handled"], *2 * ["handled"], None]
    reader.close()
