"""What a process is told by signals: to end by SIGTERM or SIGINT, to read its files again by SIGHUP."""

import asyncio
import signal
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

_reload_callbacks: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, list[Callable[[], None]]]] = (
    WeakKeyDictionary()
)


def on_end_signals(callback: Callable[[str], None]) -> None:
    """Call back with the name of the first SIGTERM or SIGINT; the next one ends the process at once.

    Those that come before the loop has got to the first one are called back with, too.
    """
    loop = asyncio.get_running_loop()
    end_signals = (signal.SIGTERM, signal.SIGINT)

    def first(number: signal.Signals) -> None:
        for each in end_signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        callback(number.name)

    for number in end_signals:
        loop.add_signal_handler(number, first, number)


def on_reload_signal(callback: Callable[[], None]) -> None:
    """Call back on every SIGHUP, after the callbacks that were there before.

    A callback must keep what it had when it cannot read something, and say so; one that raises does not
    keep the others from being called.
    """
    loop = asyncio.get_running_loop()
    callbacks = _reload_callbacks.setdefault(loop, [])
    if not callbacks:
        loop.add_signal_handler(signal.SIGHUP, _reload, loop)
    callbacks.append(callback)


def _reload(loop: asyncio.AbstractEventLoop) -> None:
    for callback in _reload_callbacks[loop]:
        loop.call_soon(callback)  # The loop logs what it raises.
