"""Decides which process is started again and when, when to give up, and in which order all of them stop.

Pure: events and the current time go in, actions come out. `launcher.py` executes them.

A process is `Running`, `Waiting` for its next start, `Stopping`, or `Gone`. The stack as a whole is
`Starting` until it was ready once, then `Serving`, then `Ending` with the outcome that it will have.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

EXITS_BEFORE_READY: Final = 3
"""So many exits of one process before the stack was ever ready mean that it will not get ready."""
FIRST_DELAY_S: Final = 1.0
LONGEST_DELAY_S: Final = 30.0
STABLE_AFTER_S: Final = 60.0
"""A process that lived this long starts again after the first delay, whatever happened before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How a process ended."""

    status: int
    """The exit status; the negative number of the signal that killed it."""
    last_lines: tuple[str, ...]
    """The end of what it wrote."""


# --- Events ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    name: str
    report: ExitReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StackReady:
    """The service can draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody wants the stack to end; a second time: at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePassed:
    """It is time for what `next_deadline` announced."""


Event = Exited | StackReady | StopRequested | DeadlinePassed


# --- Actions ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnounceRestart:
    name: str
    report: ExitReport
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminate:
    """Ask the process to finish."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The stack ended because it was asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaveUp:
    """The stack ended because this process could not be kept running."""

    name: str
    report: ExitReport


Outcome = Stopped | GaveUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """No process is left."""

    outcome: Outcome


Action = Start | AnnounceRestart | Terminate | Kill | Finish


# --- States of one process ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    start_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    kill_at_s: float | None
    """None once it was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    pass


ProcessState = Running | Waiting | Stopping | Gone


@dataclass(slots=True)
class _Process:
    state: ProcessState
    exits: int = 0
    delay_s: float = FIRST_DELAY_S
    """Before its next start."""


# --- States of the stack ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    pass


StackState = Starting | Serving | Ending | Ended


class Supervisor:
    """`layers` names the processes, what the others depend on first; they stop in the reverse order."""

    def __init__(self, layers: Sequence[Sequence[str]], *, stop_limit_s: float) -> None:
        self._layers = tuple(tuple(layer) for layer in layers)
        self._stop_limit_s = stop_limit_s
        self._processes: dict[str, _Process] = {
            name: _Process(Waiting(start_at_s=float("-inf"))) for layer in self._layers for name in layer
        }
        self._stack: StackState = Starting()

    @property
    def stack(self) -> StackState:
        return self._stack

    def begin(self, now: float) -> list[Action]:
        """Start everything: the components tolerate each other's absence."""
        return self._start_due(now)

    def handle(self, event: Event, now: float) -> list[Action]:
        match event:
            case Exited(name=name, report=report):
                return self._on_exit(name, report, now)
            case StackReady():
                if isinstance(self._stack, Starting):
                    self._stack = Serving()
                return []
            case StopRequested():
                return self._on_stop_request(now)
            case DeadlinePassed():
                return [*self._start_due(now), *self._kill_overdue(now)]
            case _:
                assert_never(event)

    def next_deadline(self) -> float | None:
        deadlines = [
            at
            for process in self._processes.values()
            if (at := _deadline(process.state)) is not None and at > float("-inf")
        ]
        return min(deadlines, default=None)

    def check_invariants(self) -> None:
        """Raises AssertionError if a rule of this module does not hold."""
        for name, process in self._processes.items():
            match self._stack:
                case Starting() | Serving():
                    assert isinstance(process.state, Running | Waiting), (name, process)
                case Ending():
                    assert not isinstance(process.state, Waiting), (name, process)
                case Ended():
                    assert isinstance(process.state, Gone), (name, process)
            assert FIRST_DELAY_S <= process.delay_s <= LONGEST_DELAY_S, (name, process)
            if isinstance(self._stack, Starting):
                assert process.exits < EXITS_BEFORE_READY, (name, process)
        if isinstance(self._stack, Ending):
            assert any(self._alive()), "an ending stack without processes has ended"
        stopping = {i for i, layer in enumerate(self._layers) for name in layer if self._is(name, Stopping)}
        running = {i for i, layer in enumerate(self._layers) for name in layer if self._is(name, Running)}
        if stopping and running:
            assert max(running) < min(stopping), "a layer stops only after all that depend on it"

    def _is(self, name: str, state: type[ProcessState]) -> bool:
        return isinstance(self._processes[name].state, state)

    def _alive(self) -> Iterator[str]:
        return (n for n, p in self._processes.items() if isinstance(p.state, Running | Stopping))

    def _start_due(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, process in self._processes.items():
            if isinstance(process.state, Waiting) and process.state.start_at_s <= now:
                process.state = Running(since_s=now)
                actions.append(Start(name=name))
        return actions

    def _kill_overdue(self, now: float) -> list[Action]:
        overdue = [
            name
            for name, process in self._processes.items()
            if isinstance(process.state, Stopping)
            and process.state.kill_at_s is not None
            and process.state.kill_at_s <= now
        ]
        return self._kill(overdue)

    def _kill(self, names: Sequence[str]) -> list[Action]:
        for name in names:
            self._processes[name].state = Stopping(kill_at_s=None)
        return [Kill(name=name) for name in names]

    def _on_exit(self, name: str, report: ExitReport, now: float) -> list[Action]:
        process = self._processes[name]
        if isinstance(self._stack, Ending | Ended):
            process.state = Gone()
            return self._stop_next_layer(now)
        if isinstance(process.state, Running) and now - process.state.since_s >= STABLE_AFTER_S:
            process.delay_s = FIRST_DELAY_S
        process.exits += 1
        if isinstance(self._stack, Starting) and _is_hopeless(process.exits, report):
            process.state = Gone()
            return self._end(GaveUp(name=name, report=report), now)
        delay_s = process.delay_s
        process.delay_s = min(2 * delay_s, LONGEST_DELAY_S)
        process.state = Waiting(start_at_s=now + delay_s)
        return [AnnounceRestart(name=name, report=report, delay_s=delay_s)]

    def _on_stop_request(self, now: float) -> list[Action]:
        match self._stack:
            case Starting() | Serving():
                return self._end(Stopped(), now)
            case Ending():
                return self._kill(list(self._alive()))
            case Ended():
                return []
            case _:
                assert_never(self._stack)

    def _end(self, outcome: Outcome, now: float) -> list[Action]:
        self._stack = Ending(outcome=outcome)
        for process in self._processes.values():
            if isinstance(process.state, Waiting):
                process.state = Gone()
        return self._stop_next_layer(now)

    def _stop_next_layer(self, now: float) -> list[Action]:
        """Ask the last layer that is alive to finish, unless it was asked already."""
        for layer in reversed(self._layers):
            alive = [name for name in layer if not self._is(name, Gone)]
            if alive:
                running = [name for name in alive if self._is(name, Running)]
                for name in running:
                    self._processes[name].state = Stopping(kill_at_s=now + self._stop_limit_s)
                return [Terminate(name=name) for name in running]
        if not isinstance(self._stack, Ending):
            return []
        outcome, self._stack = self._stack.outcome, Ended()
        return [Finish(outcome=outcome)]


def _is_hopeless(exits: int, report: ExitReport) -> bool:
    return report.status in {EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START} or exits >= EXITS_BEFORE_READY


def _deadline(state: ProcessState) -> float | None:
    match state:
        case Waiting(start_at_s=at):
            return at
        case Stopping(kill_at_s=at):
            return at
        case Running() | Gone():
            return None
        case _:
            assert_never(state)
