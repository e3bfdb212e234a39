"""What a socket has been emptied of and nobody has handled yet, without reports that a later one repeats."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

MAX_MESSAGES: Final = 16_384
MAX_BYTES: Final = 64 * 1024 * 1024
"""Beyond these, messages wait at the socket."""

T = TypeVar("T")
Speaker = Callable[[T], tuple[Hashable, bool] | None]
"""Whose a message is, and whether it is a report: one that says all that was said before. None: whoever's."""


class Backlog(Generic[T]):
    """First in, first out. A report is dropped when the next message of its peer is a report too.

    Not when another message stands in between, which may rely on it: a call on the end of an earlier one.
    """

    def __init__(self, speaker: Speaker[T]) -> None:
        self._speaker = speaker
        self._messages: OrderedDict[int, tuple[T, int, Hashable]] = OrderedDict()
        """In their order, each with its size and its peer."""
        self._reports: dict[Hashable, int] = {}
        """By peer: the number of its last message, where that is a report."""
        self._number = 0
        self._size_bytes = 0
        self.superseded = 0
        """Messages that were dropped, as a later one said all that they said."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        return len(self._messages) >= MAX_MESSAGES or self._size_bytes >= MAX_BYTES

    def add(self, message: T, size_bytes: int) -> None:
        self._number += 1
        peer, is_report = self._speaker(message) or (None, False)
        earlier = self._reports.pop(peer, None)
        if is_report:
            self._reports[peer] = self._number
            if earlier is not None:
                self._size_bytes -= self._messages.pop(earlier)[1]
                self.superseded += 1
        self._messages[self._number] = message, size_bytes, peer
        self._size_bytes += size_bytes

    def take(self) -> T:
        """The first one. Raises KeyError: there is none."""
        number, (message, size_bytes, peer) = self._messages.popitem(last=False)
        self._size_bytes -= size_bytes
        if self._reports.get(peer) == number:
            del self._reports[peer]
        return message

    def clear(self) -> None:
        """Nobody will handle what is here."""
        self._messages.clear()
        self._reports.clear()
        self._size_bytes = 0
