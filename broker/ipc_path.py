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
    return _who_listens(path)


def _who_listens(path: Path) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        match probe.connect_ex(str(path)):
            case errno.ECONNREFUSED | errno.ENOENT:
                return None  # It belonged to a process that was killed.
            case errno.EACCES:
                return "there is a socket that this user may not connect to"
            case _:  # A full backlog gives EAGAIN.
                return "another process listens there"
