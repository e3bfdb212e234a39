"""What the three shells have in common: a pure core, a mailbox, and one timer."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

LATE_S: Final = 5.0
"""A timer may be so late on a busy host."""

Event = TypeVar("Event")
Action = TypeVar("Action")
EventIn_contra = TypeVar("EventIn_contra", contravariant=True)


class Core(Protocol[EventIn_contra, Action]):
    """A core decides; `now` is on a monotonic clock, in seconds."""

    def handle(self, event: EventIn_contra, now: float) -> list[Action]: ...

    def next_deadline(self) -> float | None: ...


class Mailbox(Generic[Event, Action]):
    """Feeds events to a core one at a time, has its actions performed, and tells it when its time has come.

    An event that arises while actions are performed waits for its turn: a core is never entered twice.
    """

    def __init__(
        self, core: Core[Event, Action], timer_fired: Event, perform: Callable[[Action], None]
    ) -> None:
        self._core = core
        self._timer_fired = timer_fired
        self._perform = perform
        self._loop = asyncio.get_running_loop()
        # Timers and sockets that come of a call's event must not log as that call for ever.
        self._context = contextvars.copy_context()
        self._waiting: deque[Event] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def tell(self, event: Event) -> None:
        """Let the core handle the event, now or when it is done with the present one."""
        if self._closed:
            return
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        self._context.copy().run(self._work)

    def _work(self) -> None:
        try:
            while self._waiting:
                for action in self._core.handle(self._waiting.popleft(), self._loop.time()):
                    self._perform(action)
        finally:
            self._busy = False
            self._arm()

    def is_late(self) -> bool:
        """Whether the core waits for its time although that has come long ago: something keeps failing."""
        deadline = self._core.next_deadline()
        return deadline is not None and not self._closed and self._loop.time() > deadline + LATE_S

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._disarm()

    def _arm(self) -> None:
        """A timer that is due before the deadline stays: most events only move that away."""
        deadline = self._core.next_deadline()
        if deadline is None or self._closed:
            self._disarm()
        elif self._timer is None or self._timer.when() > deadline:
            self._disarm()
            self._timer = self._loop.call_at(deadline, self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        deadline = self._core.next_deadline()
        if deadline is not None and self._loop.time() >= deadline:
            self.tell(self._timer_fired)
        else:
            self._arm()
