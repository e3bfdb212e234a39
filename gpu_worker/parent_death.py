"""A process that ends with its parent, whatever ends that one, and even where both are stopped."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def live_no_longer_than(parent_pid: int) -> None:
    """Have this process killed when the thread that made it ends; end at once if that has happened.

    The wish (prctl(2), PR_SET_PDEATHSIG) concerns this process only: its own children need theirs.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        # It died before the kernel was asked to watch it.
        os._exit(0)
