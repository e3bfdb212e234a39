"""Notes what holds an event loop for long. Python imports it at the start, if this folder is on the path.

The thread's CPU time counts, not the wall clock: on a shared machine any callback can be interrupted.
"""

import asyncio.events
import atexit
import json
import os
import sys
import time
from pathlib import Path

FOLDER = "LOOP_WATCH_FOLDER"
NOTED_S = 0.01
"""What takes less is nobody's business."""

_noted: list[dict[str, object]] = []
_run = asyncio.events.Handle._run


def _timed(handle: asyncio.events.Handle) -> None:
    began_at, began_s = time.monotonic(), time.thread_time()
    _run(handle)
    held_s = time.thread_time() - began_s
    if held_s > NOTED_S:
        _noted.append({"at": began_at, "held_s": held_s, "callback": repr(handle)})


def _write(folder: Path) -> None:
    words = sys.orig_argv
    name = words[words.index("-m") + 1] if "-m" in words else "other"
    (folder / f"{name}-{os.getpid()}.json").write_text(json.dumps(_noted))


if FOLDER in os.environ:
    asyncio.events.Handle._run = _timed  # type: ignore[method-assign]
    atexit.register(_write, Path(os.environ[FOLDER]))
