"""Keeps the service manager informed from the event loop: state, a line for people, and the watchdog's food.

A loop that stands still feeds nothing, nor does one whose process cannot go on: the manager then ends it.
"""

import asyncio
import os
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import structlog

from proto.service_manager import ServiceManager, microseconds

LOOK_S: Final = 1.0
"""Between two looks at the process, if the watchdog does not want them more often."""
LOOKS_PER_WATCHDOG: Final = 4
PATIENCE_S: Final = 60.0
"""For the next look, from a start or a stop that takes longer than its unit says (EXTEND_TIMEOUT_USEC)."""

log = structlog.get_logger()


class _Phase(Enum):
    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()


class ServiceWatch:
    """To be made on the running event loop. Does nothing where no service manager listens."""

    def __init__(self, *, status: Callable[[], str], is_well: Callable[[], bool]) -> None:
        """`status` is one line for people; `is_well`: whether the process can go on by itself."""
        self._manager = ServiceManager.take_from(os.environ)
        self._status = status
        self._is_well = is_well
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._phase = _Phase.STARTING
        self._untold: dict[str, str] = {}
        """Changes of state that the manager has to hear once."""
        self._told_status = ""
        self._was_well = True
        self._is_closed = False

    def start(self) -> None:
        """Begin to look; the process is starting."""
        self._look()

    def ready(self) -> None:
        """It serves. Said again it changes nothing."""
        if self._phase is _Phase.STARTING:
            self._enter(_Phase.SERVING, READY="1")

    def stopping(self) -> None:
        """It was told to end, and finishes what it has begun."""
        if self._phase is not _Phase.STOPPING:
            self._enter(_Phase.STOPPING, STOPPING="1")

    def close(self) -> None:
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _enter(self, phase: _Phase, **fields: str) -> None:
        self._phase = phase
        self._untold |= fields
        self._look()

    def _look(self) -> None:
        if self._manager is None or self._is_closed:
            return
        self._report(self._manager)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_interval_s(self._manager), self._look_last)

    def _look_last(self) -> None:
        """After a standstill, all that has become due meanwhile goes first: it may be what makes it well."""
        self._loop.call_soon(self._look)

    def _report(self, manager: ServiceManager) -> None:
        fields, status = dict(self._untold), self._status()
        if status != self._told_status:
            fields["STATUS"] = status
        if self._looks_well():
            fields["WATCHDOG"] = "1"
            if self._phase is not _Phase.SERVING:
                fields["EXTEND_TIMEOUT_USEC"] = microseconds(PATIENCE_S)
        if fields and manager.tell(**fields):
            self._untold.clear()
            self._told_status = status

    def _looks_well(self) -> bool:
        well = self._is_well()
        if well != self._was_well:
            self._was_well = well
            if well:
                log.info("the watchdog is fed again")
            else:
                log.error("stuck, the watchdog is not fed any more", status=self._status())
        return well


def _interval_s(manager: ServiceManager) -> float:
    return LOOK_S if manager.watchdog_s is None else min(LOOK_S, manager.watchdog_s / LOOKS_PER_WATCHDOG)
