"""The launcher's decisions, as transcripts: events in, actions out, time by hand."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from deploy.supervision import (
    EXITS_BEFORE_READY,
    LONGEST_DELAY_S,
    STABLE_AFTER_S,
    Action,
    AnnounceRestart,
    DeadlinePassed,
    Ended,
    Event,
    Exited,
    ExitReport,
    Finish,
    GaveUp,
    Kill,
    StackReady,
    Start,
    Stopped,
    StopRequested,
    Supervisor,
    Terminate,
)
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

LAYERS = [["broker"], ["worker-1", "worker-2"], ["frontend"]]
ALL = ["broker", "worker-1", "worker-2", "frontend"]
STOP_LIMIT_S = 30.0
CRASH = ExitReport(status=1, last_lines=("Traceback",))
KILLED = ExitReport(status=-9, last_lines=())
CLEAN = ExitReport(status=0, last_lines=())


class Transcript:
    """A supervisor at work; checks its invariants after every step."""

    def __init__(self) -> None:
        self.supervisor = Supervisor(LAYERS, stop_limit_s=STOP_LIMIT_S)
        self.now = 0.0
        assert self.supervisor.begin(0.0) == [Start(name=name) for name in ALL]
        self.supervisor.check_invariants()

    def after(self, seconds: float, event: Event) -> Sequence[Action]:
        self.now += seconds
        actions = self.supervisor.handle(event, self.now)
        self.supervisor.check_invariants()
        return actions

    def at_deadline(self) -> Sequence[Action]:
        deadline = self.supervisor.next_deadline()
        assert deadline is not None
        return self.after(deadline - self.now, DeadlinePassed())


def exited(name: str, report: ExitReport = CLEAN) -> Exited:
    return Exited(name=name, report=report)


def restart(name: str, report: ExitReport, delay_s: float) -> list[Action]:
    return [AnnounceRestart(name=name, report=report, delay_s=delay_s)]


def test_a_process_that_died_starts_again_after_a_second() -> None:
    script = Transcript()
    script.after(5, StackReady())
    assert script.after(100, exited("worker-1", KILLED)) == restart("worker-1", KILLED, 1.0)
    assert script.supervisor.next_deadline() == script.now + 1.0
    assert script.at_deadline() == [Start(name="worker-1")]
    assert script.supervisor.next_deadline() is None


def test_the_delay_doubles_up_to_its_limit() -> None:
    script = Transcript()
    script.after(5, StackReady())
    delays = []
    for _ in range(8):
        (announcement,) = script.after(1, exited("broker", CRASH))
        assert isinstance(announcement, AnnounceRestart)
        delays.append(announcement.delay_s)
        assert script.at_deadline() == [Start(name="broker")]
    assert delays == [1, 2, 4, 8, 16, LONGEST_DELAY_S, LONGEST_DELAY_S, LONGEST_DELAY_S]


def test_a_long_life_is_forgiven() -> None:
    script = Transcript()
    script.after(5, StackReady())
    for delay_s in (1.0, 2.0):
        assert script.after(1, exited("broker", CRASH)) == restart("broker", CRASH, delay_s)
        script.at_deadline()
    assert script.after(STABLE_AFTER_S, exited("broker", CRASH)) == restart("broker", CRASH, 1.0)


def test_nothing_happens_before_its_time() -> None:
    script = Transcript()
    script.after(5, exited("broker", CRASH))
    assert script.after(0.5, DeadlinePassed()) == []


@pytest.mark.parametrize("status", [EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START])
def test_a_process_that_cannot_start_ends_the_stack_and_is_named(status: int) -> None:
    report = ExitReport(status=status, last_lines=("port 50051 is taken",))
    script = Transcript()
    assert script.after(1, exited("frontend", report)) == [
        Terminate(name="worker-1"),
        Terminate(name="worker-2"),
    ]
    assert script.after(1, exited("worker-1")) == []
    assert script.after(1, exited("worker-2")) == [Terminate(name="broker")]
    assert script.after(1, exited("broker")) == [Finish(outcome=GaveUp(name="frontend", report=report))]


def test_dying_again_and_again_before_the_stack_was_ready_ends_it() -> None:
    script = Transcript()
    for _ in range(EXITS_BEFORE_READY - 1):
        assert isinstance(script.after(1, exited("worker-2", CRASH))[0], AnnounceRestart)
        script.at_deadline()
    assert script.after(1, exited("worker-2", CRASH)) == [Terminate(name="frontend")]
    script.after(1, exited("frontend"))
    script.after(1, exited("worker-1"))
    assert script.after(1, exited("broker")) == [Finish(outcome=GaveUp(name="worker-2", report=CRASH))]


def test_a_long_life_is_not_forgiven_before_the_stack_was_ready() -> None:
    """A worker takes minutes to find that its engine never gets ready."""
    script = Transcript()
    for _ in range(EXITS_BEFORE_READY - 1):
        assert script.after(3 * STABLE_AFTER_S, exited("worker-2", CRASH)) == restart("worker-2", CRASH, 1.0)
        script.at_deadline()
    assert script.after(3 * STABLE_AFTER_S, exited("worker-2", CRASH)) == [Terminate(name="frontend")]


def test_once_the_stack_was_ready_nothing_is_given_up() -> None:
    unlucky = ExitReport(status=EXIT_CANNOT_START, last_lines=("port 50051 is taken",))
    script = Transcript()
    script.after(5, StackReady())
    for _ in range(2 * EXITS_BEFORE_READY):
        assert isinstance(script.after(1, exited("frontend", unlucky))[0], AnnounceRestart)
        assert script.at_deadline() == [Start(name="frontend")]


def test_it_stops_in_reverse_order() -> None:
    script = Transcript()
    script.after(5, StackReady())
    assert script.after(1, StopRequested()) == [Terminate(name="frontend")]
    assert script.after(1, exited("frontend")) == [Terminate(name="worker-1"), Terminate(name="worker-2")]
    assert script.after(1, exited("worker-2")) == []
    assert script.after(1, exited("worker-1")) == [Terminate(name="broker")]
    assert script.after(1, exited("broker")) == [Finish(outcome=Stopped())]
    assert script.after(1, StopRequested()) == []
    assert script.supervisor.next_deadline() is None


def test_one_that_does_not_finish_in_time_is_killed() -> None:
    script = Transcript()
    script.after(5, StopRequested())
    assert script.supervisor.next_deadline() == script.now + STOP_LIMIT_S
    assert script.at_deadline() == [Kill(name="frontend")]
    assert script.supervisor.next_deadline() is None
    assert script.after(1, exited("frontend", KILLED)) == [
        Terminate(name="worker-1"),
        Terminate(name="worker-2"),
    ]


def test_a_second_request_kills_all_at_once() -> None:
    script = Transcript()
    script.after(5, StopRequested())
    assert script.after(1, StopRequested()) == [Kill(name=name) for name in ALL]
    for name in ("broker", "frontend", "worker-2"):
        assert script.after(0, exited(name, KILLED)) == []
    assert script.after(0, exited("worker-1", KILLED)) == [Finish(outcome=Stopped())]


def test_one_that_waits_for_its_restart_is_not_started_by_a_stop() -> None:
    script = Transcript()
    script.after(5, StackReady())
    script.after(1, exited("frontend", CRASH))
    assert script.after(0.5, StopRequested()) == [Terminate(name="worker-1"), Terminate(name="worker-2")]
    assert script.after(5, DeadlinePassed()) == []


def test_a_later_death_while_stopping_keeps_the_first_reason() -> None:
    report = ExitReport(status=EXIT_BAD_CONFIGURATION, last_lines=())
    script = Transcript()
    script.after(1, exited("broker", report))
    for name in ("frontend", "worker-1"):
        script.after(1, exited(name, CRASH))
    assert script.after(1, exited("worker-2", CRASH)) == [
        Finish(outcome=GaveUp(name="broker", report=report))
    ]


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever happens, in whatever order: the invariants hold, and no process is started twice."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.alive: set[str] = set()
        self.asked: set[str] = set()
        self.supervisor = Supervisor(LAYERS, stop_limit_s=STOP_LIMIT_S)
        self.obey(self.supervisor.begin(self.now))

    def obey(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(name=name):
                    assert name not in self.alive
                    self.alive.add(name)
                case Terminate(name=name) | Kill(name=name):
                    assert name in self.alive
                    self.asked.add(name)
                case Finish():
                    assert not self.alive
                    assert isinstance(self.supervisor.stack, Ended)
                case AnnounceRestart(name=name):
                    assert name not in self.alive

    def send(self, event: Event) -> None:
        self.obey(self.supervisor.handle(event, self.now))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), status=st.sampled_from([0, 1, -9, EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START]))
    def exit(self, data: st.DataObject, status: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(name)
        self.send(exited(name, ExitReport(status=status, last_lines=())))

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.send(DeadlinePassed())

    @rule()
    def becomes_ready(self) -> None:
        self.send(StackReady())

    @rule()
    def stop(self) -> None:
        self.send(StopRequested())

    @invariant()
    def rules_hold(self) -> None:
        self.supervisor.check_invariants()


AnyOrderOfEvents.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnyOrderOfEvents = AnyOrderOfEvents.TestCase
