"""What is remembered only so long as it is among the latest."""

from typing import Any


def keep_latest(table: dict[Any, Any], count: int) -> None:
    """Forget what was put in first, until `count` entries are left."""
    while len(table) > count:
        del table[next(iter(table))]
