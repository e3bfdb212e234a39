"""Runs a command that cannot outlive the process that started it, not even if that one is killed.

Run as a file: `python -I -S tied.py PARENT_PID COMMAND…`. It asks the kernel (Linux) to kill it when its
parent ends and becomes the command; the wish survives that. Done here, in a process of its own, because
code between fork and exec is not safe beside threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_PARENT_GONE = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(EXIT_PARENT_GONE)
    os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
