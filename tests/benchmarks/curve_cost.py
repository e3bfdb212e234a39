"""What encryption costs: echoes of an image over loopback tcp, with CURVE and without, turn by turn.

PYTHONPATH=tests:. python -m benchmarks.curve_cost
"""

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import zmq

from proto.curve import CurveClient, CurveServer
from proto.keys import make_key_pair

ROUNDS: Final = 100
SIZES_BYTES: Final = (1024, 3 * 1024 * 1024)


@contextmanager
def echo(encrypted: bool) -> Iterator["zmq.Socket[bytes]"]:
    """A client's socket, of a server in a thread with a context of its own."""
    broker, peer = make_key_pair(), make_key_pair()
    with zmq.Context() as for_server, zmq.Context() as for_client:
        authenticator = for_server.socket(zmq.REP)
        authenticator.bind("inproc://zeromq.zap.01")
        server, client = for_server.socket(zmq.ROUTER), for_client.socket(zmq.DEALER)
        if encrypted:
            CurveServer(keys=broker, domain="worker").protect(server)
            CurveClient(keys=peer, broker_key=broker.public).protect(client)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        thread = threading.Thread(target=serve, args=(server, authenticator))
        thread.start()
        client.connect(f"tcp://127.0.0.1:{port}")
        try:
            yield client
            client.send(b"")
            thread.join()
        finally:
            client.close(linger=0)


def serve(server: "zmq.Socket[bytes]", authenticator: "zmq.Socket[bytes]") -> None:
    """Until an empty message; admits everybody."""
    poller = zmq.Poller()
    for socket in (server, authenticator):
        poller.register(socket, zmq.POLLIN)
    body = b"."
    while body:
        for socket, _ in poller.poll():
            if socket is authenticator:
                _version, request_id, *_ = authenticator.recv_multipart()
                authenticator.send_multipart([b"1.0", request_id, b"200", b"OK", b"", b""])
                continue
            frames = server.recv_multipart(copy=False)
            body = frames[-1].bytes if len(frames[-1]) == 0 else b"."
            if body:
                server.send_multipart(frames, copy=False)
    server.close(linger=0)
    authenticator.close(linger=0)


def timed(socket: "zmq.Socket[bytes]", message: bytes) -> tuple[float, float]:
    """Seconds, and seconds of CPU in all threads: both ways, at both ends."""
    began, cpu_began = time.perf_counter(), time.process_time()
    socket.send(message, copy=False)
    socket.recv(copy=False)
    return time.perf_counter() - began, time.process_time() - cpu_began


def main() -> None:
    with echo(encrypted=False) as plain, echo(encrypted=True) as curve:
        for size_bytes in SIZES_BYTES:
            message = bytes(size_bytes)
            durations: dict[str, list[tuple[float, float]]] = {"plain": [], "CURVE": []}
            for _ in range(ROUNDS):
                durations["plain"].append(timed(plain, message))
                durations["CURVE"].append(timed(curve, message))
            for name, each in durations.items():
                wall_ms, cpu_ms = (statistics.median(column) * 1000 for column in zip(*each, strict=True))
                print(f"{size_bytes:>8} bytes, {name}: median {wall_ms:.2f} ms, CPU {cpu_ms:.2f} ms")


if __name__ == "__main__":
    main()
