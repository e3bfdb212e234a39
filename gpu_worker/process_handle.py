"""A process by its pidfd, which cannot come to mean another process as a number can."""

import os
import select
import signal
import threading


class ProcessHandle:
    """Any process of this user, child or not. Safe to use from several threads.

    A process that is gone already has a handle too: it has ended, and killing it does nothing.
    """

    def __init__(self, pid: int) -> None:
        """Raises `OSError`: Linux is older than 5.3, or a sandbox forbids pidfd_open(2)."""
        self.pid = pid
        self._lock = threading.Lock()
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            pass
        except OSError as error:
            raise OSError(error.errno, f"pidfd_open(2), of Linux 5.3, fails: {error.strerror}") from error

    def kill(self) -> None:
        """Kill it, whatever it does; harmless if it has ended."""
        with self._lock:
            if self._pidfd is None:
                return
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def ends(self, limit_s: float | None = None) -> bool:
        """Wait for its end, reaped or not, no longer than `limit_s` if given. True if it has ended.

        Not to be called beside `close()`.
        """
        if self._pidfd is None:
            return True
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(None if limit_s is None else limit_s * 1000))

    def close(self) -> None:
        """To be called when it has ended."""
        with self._lock:
            if self._pidfd is not None:
                os.close(self._pidfd)
                self._pidfd = None
