"""The collector looks seldom, and nothing that a call needs is left to it."""

import gc
import subprocess
import sys

from samples.wire import EPOCH, image_outcome, start, submit, worker_report, worker_view

from proto.codec import decode, encode

PROGRAM = """
import gc
from proto.garbage import NEW_OBJECTS, collect_rarely
collect_rarely()
print(gc.isenabled(), gc.get_threshold()[0] == NEW_OBJECTS, gc.get_freeze_count() > 1000)
"""


def test_imports_are_not_looked_at_and_new_objects_seldom():
    path = ":".join(part for part in sys.path if part)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": path},
        check=True,
    )
    assert done.stdout.split() == ["True", "True", "True"]


def test_messages_leave_no_cycles():
    messages = (submit(), start(), worker_report(), worker_view(), image_outcome(EPOCH))

    def left_after_all_of_them() -> int:
        gc.collect()
        assert [decode(encode(message)) for message in messages] == list(messages)
        return gc.collect()

    gc.disable()
    try:
        left_after_all_of_them()  # The first time something else may be made, for ever.
        assert left_after_all_of_them() == 0
    finally:
        gc.enable()
