"""What a socket has been emptied of and nobody has handled yet: of a peer's reports, the latest alone."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

MAX_MESSAGES: Final = 16_384
MAX_BYTES: Final = 64 * 1024 * 1024
"""Beyond these, messages wait at the socket."""

T = TypeVar("T")


class Backlog(Generic[T]):
    """First in, first out."""

    def __init__(self, supersedes: Callable[[T], Hashable | None]) -> None:
        """A message is dropped when one comes for which `supersedes` gives the same; None: it never is."""
        self._supersedes = supersedes
        self._messages: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
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
        key = self._supersedes(message)
        if key is None:
            self._number += 1
            key = self._number
        elif (earlier := self._messages.pop(key, None)) is not None:
            self._size_bytes -= earlier[1]
            self.superseded += 1
        # At the end, also in place of another: it may speak of what was sent in between.
        self._messages[key] = message, size_bytes
        self._size_bytes += size_bytes

    def take(self) -> T:
        """The first one. Raises KeyError: there is none."""
        _, (message, size_bytes) = self._messages.popitem(last=False)
        self._size_bytes -= size_bytes
        return message
