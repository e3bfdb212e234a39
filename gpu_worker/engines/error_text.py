"""Somebody else's exception as one short line."""

from typing import Final

_MAX_CHARACTERS: Final = 300


def first_line(error: BaseException) -> str:
    """The exception's class and the first line of its text, cut to what suits a log and a message."""
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {line}"[:_MAX_CHARACTERS] if line else type(error).__name__
