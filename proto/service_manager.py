"""What a process tells the service manager that started it (systemd): whether it is ready, and how it does.

The protocol is sd_notify(3): lines in a datagram to the socket that `NOTIFY_SOCKET` names. Without that
variable nobody is told anything. Own code, as it is one `sendto`: of the libraries, sdnotify has not changed
since 2017 and keeps the variables for child processes, and systemd-python is C that has to be built.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Final

import structlog

_MICRO: Final = 1_000_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ServiceManager:
    address: str
    """Of its socket; an abstract one begins with a zero byte."""
    watchdog_s: float | None
    """It ends this process when it hears nothing for so long; None: never."""

    @classmethod
    def take_from(cls, environment: MutableMapping[str, str]) -> "ServiceManager | None":
        """Who listens, if anybody does. The variables are taken out: they do not concern child processes."""
        given = {
            name: environment.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        }
        name = given["NOTIFY_SOCKET"]
        if name[:1] not in {"/", "@"}:
            return None
        address = name if name.startswith("/") else f"\0{name[1:]}"
        return cls(address=address, watchdog_s=_watchdog_s(given))

    def tell(self, **fields: str) -> bool:
        """True if it took this; a full or missing socket never holds up the caller."""
        datagram = "\n".join(f"{name}={' '.join(text.split())}" for name, text in fields.items()).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(datagram, self.address)
        except OSError as error:
            log.debug("service manager was not told", error=str(error))
            return False
        return True


def microseconds(duration_s: float) -> str:
    """As the manager wants to have durations."""
    return str(round(duration_s * _MICRO))


def _watchdog_s(given: Mapping[str, str]) -> float | None:
    is_ours = given["WATCHDOG_PID"] in {"", str(os.getpid())}
    usec = given["WATCHDOG_USEC"]
    return int(usec) / _MICRO if is_ours and usec.isdecimal() and int(usec) > 0 else None
