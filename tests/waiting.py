"""Waiting for what a test can only see by looking."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")


def until(what: str, look: Callable[[], T | None], limit_s: float, poll_s: float) -> T:
    """Look again and again until there is something to see, and give it."""
    pause = threading.Event()
    give_up_at = time.monotonic() + limit_s
    while not (found := look()):
        if time.monotonic() >= give_up_at:
            pytest.fail(f"not within {limit_s:g} s: {what}")
        pause.wait(poll_s)
    return found
