"""How a process is told to end: the first SIGTERM or SIGINT asks it to finish, the second ends it at once."""

import asyncio
import signal
from collections.abc import Callable


def on_end_signals(callback: Callable[[str], None]) -> None:
    """Call back with the name of the first SIGTERM or SIGINT; the next one has its default effect."""
    loop = asyncio.get_running_loop()
    end_signals = (signal.SIGTERM, signal.SIGINT)

    def first(number: signal.Signals) -> None:
        for each in end_signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)
        callback(number.name)

    for number in end_signals:
        loop.add_signal_handler(number, first, number)
