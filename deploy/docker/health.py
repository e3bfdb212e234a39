#!/opt/flux-server/bin/python -IS
"""What a container's health check runs: status 0 if the service in it does well.

flux-health         it serves; of a worker: its model is loaded
flux-health alive   it may still be starting, or ending, but it does not hang

A component that runs alone tells the service manager at `NOTIFY_SOCKET` how it does (sd_notify(3)): there is
none in a container, so this listens in its place until the next word. While it starts or stops, it asks
for more time with each word. The whole service on one host is asked by HTTP, at the frontend's port.
"""

import fcntl
import os
import socket
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path

LIMIT_S = 5.0
"""Longer than the pause between two words, and than another check that listens at the moment."""
PAGES = {"serves": "/readyz", "alive": "/healthz"}


def main() -> None:
    wanted = "alive" if sys.argv[1:] == ["alive"] else "serves"
    address = os.environ.get("NOTIFY_SOCKET", "")
    problem = heard(address, wanted) if address else answered(PAGES[wanted])
    if problem:
        sys.exit(f"flux-health: {problem}")


def heard(address: str, wanted: str) -> str:
    """What is wrong, by the next word of the component; empty if nothing is."""
    with Path(f"{address}.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # Two checks at once would take the socket from each other.
        Path(address).unlink(missing_ok=True)  # Of one that was killed.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(address)
            listener.settimeout(LIMIT_S)
            try:
                return judged(next_word(listener), wanted)
            except TimeoutError:
                return f"no sign of life for {LIMIT_S:g} s"
            finally:
                Path(address).unlink(missing_ok=True)


def next_word(listener: socket.socket) -> dict[str, str]:
    """Raises TimeoutError."""
    while True:
        fields = dict(line.split("=", 1) for line in listener.recv(65536).decode().splitlines())
        if "WATCHDOG" in fields:
            return fields


def judged(fields: dict[str, str], wanted: str) -> str:
    if wanted == "alive" or "EXTEND_TIMEOUT_USEC" not in fields:
        return ""
    return fields.get("STATUS", "it is starting or stopping")


def answered(page: str) -> str:
    """What is wrong, by the answer of the frontend on this host; empty if nothing is."""
    environment = os.environ
    port = environment.get("FLUX_SERVER_HTTP_PORT") or environment.get("FLUX_FRONTEND_HTTP_PORT") or "8000"
    encrypts = environment.get("FLUX_FRONTEND_HTTP_TLS", "").lower() in {"1", "true", "yes", "on", "t", "y"}
    connection = (
        HTTPSConnection("localhost", int(port), timeout=LIMIT_S, context=any_certificate())
        if encrypts
        else HTTPConnection("localhost", int(port), timeout=LIMIT_S)
    )
    try:
        connection.request("GET", page)
        response = connection.getresponse()
        return "" if response.status == 200 else response.read(200).decode(errors="replace").strip()
    except (OSError, HTTPException) as error:
        return f"port {port} does not answer: {error}"
    finally:
        connection.close()


def any_certificate() -> ssl.SSLContext:
    """The frontend's need not name this host: that the port is its own is known."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


if __name__ == "__main__":
    main()
