"""The mailbox: one event at a time, in order, and one timer."""

import asyncio
import contextvars

import pytest

from proto.actor import LATE_S, Mailbox

LIMIT_S = 5.0


class Recorder:
    """A core whose answers are laid down by the test."""

    def __init__(self):
        self.answers = {}
        self.handled = []
        self.inside = False
        self.deadline = None

    def handle(self, event, now):
        assert not self.inside, "entered twice"
        self.inside = True
        self.handled.append((event, now))
        self.inside = False
        return self.answers.get(event, [])

    def next_deadline(self):
        return self.deadline

    @property
    def events(self):
        return [event for event, _ in self.handled]


@pytest.fixture
def core():
    return Recorder()


async def until(condition):
    async with asyncio.timeout(LIMIT_S):
        while not condition():  # noqa: ASYNC110 - there is nobody who could set an event
            await asyncio.sleep(0.001)


async def test_actions_are_performed_in_order(core):
    performed = []
    core.answers = {"a": [1, 2], "b": [3]}
    mailbox = Mailbox(core, "timer", performed.append)
    mailbox.tell("a")
    mailbox.tell("b")
    assert performed == [1, 2, 3]


async def test_an_event_that_arises_from_an_action_waits_for_its_turn(core):
    story = []

    def perform(action):
        story.append(action)
        if action == "send":
            mailbox.tell("unreachable")
            assert core.events == ["a"], "the core was entered while its actions were performed"

    core.answers = {"a": ["send", "note"], "unreachable": ["give up"]}
    mailbox = Mailbox(core, "timer", perform)
    mailbox.tell("a")
    assert story == ["send", "note", "give up"]
    assert core.events == ["a", "unreachable"]


async def test_what_comes_of_an_event_does_not_log_as_the_call_that_told_it(core):
    """The timer that it leaves behind would do so for ever."""
    caller = contextvars.ContextVar("caller", default=None)
    seen = []
    core.answers = {"a": ["act"], "timer": ["act"]}
    mailbox = Mailbox(core, "timer", lambda _: seen.append(caller.get()))

    async def call():
        caller.set("somebody")
        core.deadline = asyncio.get_running_loop().time() + 0.01
        mailbox.tell("a")
        assert caller.get() == "somebody"

    await asyncio.create_task(call())
    await until(lambda: "timer" in core.events)
    mailbox.close()
    assert set(seen) == {None}


async def test_the_core_is_told_when_its_time_has_come(core):
    loop = asyncio.get_running_loop()
    core.deadline = due_at = loop.time() + 0.03
    mailbox = Mailbox(core, "timer", lambda _: None)
    mailbox.tell("a")
    assert core.events == ["a"]
    core.answers = {}
    await until(lambda: "timer" in core.events)
    mailbox.close()
    assert core.handled[1][1] >= due_at - 0.001


async def test_only_the_latest_deadline_counts(core):
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(core, "timer", lambda _: None)
    core.deadline = loop.time() + 0.01
    mailbox.tell("a")
    core.deadline = None
    mailbox.tell("b")
    core.deadline = later = loop.time() + 0.05
    mailbox.tell("c")
    await until(lambda: "timer" in core.events)
    mailbox.close()
    assert core.events[:4] == ["a", "b", "c", "timer"]
    assert core.handled[3][1] >= later - 0.001


async def test_a_closed_mailbox_is_silent(core):
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(core, "timer", lambda _: None)
    core.deadline = loop.time() + 0.01
    mailbox.tell("a")
    mailbox.close()
    mailbox.tell("b")
    passed = loop.create_future()
    loop.call_later(0.03, passed.set_result, None)
    await passed
    assert core.events == ["a"]


async def test_a_mailbox_closed_by_an_action_takes_nothing_more(core):
    mailbox = Mailbox(core, "timer", lambda _: (mailbox.tell("b"), mailbox.close()))
    core.answers = {"a": ["exit"]}
    core.deadline = 0.0
    mailbox.tell("a")
    await asyncio.sleep(0)
    assert core.events == ["a"]


async def test_an_action_that_fails_does_not_stop_the_actor(core):
    def perform(action):
        raise ValueError(action)

    core.answers = {"a": ["bad"]}
    mailbox = Mailbox(core, "timer", perform)
    core.deadline = asyncio.get_running_loop().time() + 0.01
    with pytest.raises(ValueError, match="bad"):
        mailbox.tell("a")
    await until(lambda: "timer" in core.events)
    mailbox.close()


async def test_a_core_whose_timer_fails_again_and_again_is_late(core):
    mailbox = Mailbox(core, "timer", lambda _: None)
    assert not mailbox.is_late(), "nothing is due"
    core.deadline = asyncio.get_running_loop().time() - LATE_S / 2
    assert not mailbox.is_late(), "a busy host"
    core.deadline -= LATE_S
    assert mailbox.is_late()
    mailbox.close()
    assert not mailbox.is_late(), "it waits for nothing any more"
