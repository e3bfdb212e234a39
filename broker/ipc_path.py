"""Looks before an ipc path is bound: libzmq removes whatever lies there, even a live broker's socket."""

import errno
import socket
import stat
from pathlib import Path


def why_not_bindable(endpoint: str) -> str | None:
    """What lies at the path of an ipc endpoint and must stay there; None if nothing does.

    Two brokers that start within the same instant can still miss each other.
    """
    if not endpoint.startswith("ipc://"):
        return None  # The kernel itself gives a port to one process only.
    path = Path(endpoint.removeprefix("ipc://"))
    try:
        mode = path.stat().st_mode
    except OSError:
        return None  # Nothing there, or nothing that can be seen: binding will say so.
    if not stat.S_ISSOCK(mode):
        return "there is something that is not a socket"
    return "another process listens there" if _is_listening(path) else None


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Nobody listens at the socket of a process that was killed. A full backlog gives EAGAIN.
        return probe.connect_ex(str(path)) not in {errno.ECONNREFUSED, errno.ENOENT}
