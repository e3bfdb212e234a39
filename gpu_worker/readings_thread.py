"""Readings at regular intervals, from a thread that holds up neither the event loop nor the process's end."""

import asyncio
import threading
from collections.abc import Callable

import structlog

from gpu_worker.engines.error_text import first_line
from proto.messages import Readings

log = structlog.get_logger()


class ReadingsThread:
    """A daemon thread: nobody waits for it, as a GPU driver may keep it for ever.

    `take` is called in the thread, and may block or raise; `on_readings` is called on the event loop.
    """

    def __init__(
        self, take: Callable[[], Readings], on_readings: Callable[[Readings], None], interval_s: float
    ) -> None:
        self._take = take
        self._on_readings = on_readings
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._logged: set[type[Exception]] = set()

    def start(self) -> None:
        threading.Thread(target=self._live, name="readings", daemon=True).start()

    def stop(self) -> None:
        """From now on nothing is delivered. To be called on the event loop."""
        self._stopped.set()

    def _live(self) -> None:
        while not self._stopped.is_set():
            self._take_once()
            self._stopped.wait(self._interval_s)

    def _take_once(self) -> None:
        try:
            readings = self._take()
        except Exception as error:  # noqa: BLE001 - whatever a driver's library raises, the next try may succeed
            self._log_once(error)
            return
        try:
            self._loop.call_soon_threadsafe(self._deliver, readings)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _deliver(self, readings: Readings) -> None:
        if not self._stopped.is_set():
            self._on_readings(readings)

    def _log_once(self, error: Exception) -> None:
        """Once for each kind: it may come back with every reading."""
        if type(error) not in self._logged and not self._stopped.is_set():
            self._logged.add(type(error))
            log.error("readings cannot be taken", error=first_line(error), exc_info=error)
