"""An actor of the world: a real core, and a simulated shell.

A shell hands events to its core one at a time, performs what comes back, and arms one timer, as
`proto/actor.py` does. It can be killed between any two actions, frozen, and cut off, and lives by a clock of
its own.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from simulation.broken import InvariantBroken
from simulation.clock import Clock
from simulation.invariants import CORES
from simulation.network import BROKEN_AFTER_S, Connection

from proto.messages import Message

if TYPE_CHECKING:
    from simulation.world import World

NEVER: Final = float("inf")
ENDLESS: Final = 10_000
"""Events that follow from each other in one step."""
Trap = Callable[[Message], bool]


class Actor:
    """A process: alive or not, frozen or not, with a clock of its own."""

    timer_fired: Any
    core: Any

    def __init__(self, world: "World", name: str) -> None:
        self.world, self.name = world, name
        self.clock: Clock = world.new_clock()
        self.alive, self.frozen = True, False
        self.born_at = world.now
        self.died_at = NEVER
        self.disturbed_at = -NEVER
        """When the world last did something to it, or will have done so."""
        self.dies_after: int | None = None
        """Killed in the midst of a step: after so many more actions."""
        self.trap: tuple[Trap, bool] | None = None
        """Killed when it sends such a message; True: just after, False: instead."""
        self._inbox: deque[tuple[Any, Connection | None]] = deque()
        self.thaw_at = 0.0
        """When it goes on, or went on last."""
        self._last_reading = -NEVER
        self._deadline: float | None = None
        self._armed_at = NEVER

    # --- Time ----------------------------------------------------------------------------------

    def reading(self) -> float:
        """Of its own clock."""
        self._last_reading = max(self._last_reading, self.clock.reading_at(self.world.now))
        return self._last_reading

    def disturb(self, for_s: float = 0.0) -> None:
        self.disturbed_at = max(self.disturbed_at, self.world.now + for_s)

    def is_calm_since(self, instant: float) -> bool:
        """Nothing was done to it since then."""
        return self.alive and not self.frozen and self.disturbed_at < instant

    def _arm(self) -> None:
        self._deadline = self.core.next_deadline()
        if self._deadline is None:
            return
        if self._deadline <= self._last_reading:
            raise InvariantBroken(CORES, f"{self.name}: a timer that never rests")
        at = max(self.clock.instant_of(self._deadline), self.world.now)
        if at < self._armed_at:
            self._armed_at = at
            self.world.after(at - self.world.now, self._wake, at)

    def _wake(self, at: float) -> None:
        if not self.alive or at != self._armed_at:
            return  # An earlier wake-up took its place.
        self._armed_at = NEVER
        if not self.frozen:
            self._fire_if_due()

    def _fire_if_due(self) -> None:
        if self._deadline is None:
            return
        if self.clock.reading_at(self.world.now) >= self._deadline - 1e-6:
            self._last_reading = max(self._last_reading, self._deadline)
            self._step(self.timer_fired)
        else:  # It was put off meanwhile.
            at = self._armed_at = self.clock.instant_of(self._deadline)
            self.world.after(at - self.world.now, self._wake, at)

    # --- Steps ---------------------------------------------------------------------------------

    def receive(self, connection: Connection, message: Message) -> None:
        if self.frozen:
            self._inbox.append((message, connection))
        elif self.is_heard(connection):
            self._step(self.event_of(connection, message))

    def tell(self, event: object) -> None:
        if not self.alive:
            return
        if self.frozen:
            self._inbox.append((event, None))
        else:
            self._step(event)

    def is_heard(self, _connection: Connection) -> bool:
        return True

    def event_of(self, connection: Connection, message: Message) -> object:
        raise NotImplementedError

    def perform(self, action: Any) -> object | None:
        """Do it; gives an event that follows from it at once, if there is one."""
        raise NotImplementedError

    def _step(self, event: object) -> None:
        events, at = [event], 0
        self.world.stats.steps += 1
        while at < len(events):
            now = self.reading()
            for action in self.core.handle(events[at], now):
                if self.dies_after is not None:
                    self.dies_after -= 1
                    if self.dies_after < 0:
                        self.kill("in the midst of a step")
                if not self.alive:
                    return
                follows = self.perform(action)
                if follows is not None:
                    events.append(follows)
            at += 1
            if at > ENDLESS:
                raise InvariantBroken(CORES, f"{self.name}: a step without end, at last {events[at - 1]}")
        if not self.alive:
            return
        if self.world.self_checks:
            self._check_core()
        self._arm()

    def _check_core(self) -> None:
        self.world.checker.count(CORES)
        try:
            self.core.check_invariants()
        except AssertionError as broken:
            raise InvariantBroken(CORES, f"{self.name}: {broken}") from broken

    def springs(self, message: Message) -> bool:
        """Whether a trap was set for this message, and killed the sender before it could send."""
        if self.trap is None or not self.trap[0](message):
            return False
        after, self.trap = self.trap[1], None
        if after:
            self.dies_after = 0
        else:
            self.kill("just before it sent something")
        return not after

    # --- Faults --------------------------------------------------------------------------------

    def kill(self, how: str = "by SIGKILL") -> None:
        if not self.alive:
            return
        self.world.tell(self.name, f"is killed {how}")
        self.end()

    def end(self) -> None:
        """The process is gone, for whatever reason."""
        self.alive, self.died_at = False, self.world.now
        self._inbox.clear()

    def freeze(self, duration_s: float, *, breaks: bool = False) -> None:
        """Stop the process as SIGSTOP does: what arrives waits. `breaks`: its connections end meanwhile."""
        if not self.alive:
            return
        self.world.tell(self.name, f"is frozen for {duration_s:.1f} s")
        self.frozen = True
        self.thaw_at = max(self.thaw_at, self.world.now + duration_s)
        self.disturb(duration_s)
        self.world.after(duration_s, self._thaw)
        if breaks:
            self.world.after(BROKEN_AFTER_S, self.break_connections)

    def break_connections(self) -> None:
        """It is frozen for so long that the other ends have given it up."""
        raise NotImplementedError

    def thaw(self) -> None:
        self.thaw_at = self.world.now
        self._thaw()

    def _thaw(self) -> None:
        if not self.alive or not self.frozen or self.world.now < self.thaw_at - 1e-9:
            return
        self.world.tell(self.name, "goes on")
        self.frozen = False
        self.disturb()
        self.went_on()
        if self.world.rng.random() < 0.5:
            self._fire_if_due()
        while self._inbox and self.alive and not self.frozen:
            event, connection = self._inbox.popleft()
            if connection is None:
                self._step(event)
            elif self.is_heard(connection):
                self._step(self.event_of(connection, event))
        if self.alive and not self.frozen:
            self._fire_if_due()

    def went_on(self) -> None:
        pass
