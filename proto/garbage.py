"""The cyclic garbage collector, for processes that make no cycles: it seldom has to look."""

import gc
from typing import Final

NEW_OBJECTS: Final = 20_000
"""More than at the last look, before the next. Python's own 700 are a few images."""


def collect_rarely() -> None:
    """What exists now, the imports, is never looked at again; what comes is, every `NEW_OBJECTS`.

    A call leaves no cycles behind: with the collector off, the memory of all processes stays as it is.
    With Python's own thresholds looking took a tenth of an image's CPU, and a full look at the frontend's
    imports held its loop for 0.1 s.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
