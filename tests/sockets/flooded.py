"""A peer sends more than a socket has room for, and ends, while this process looks at none of it.

A process of its own: with ZMTP's heartbeats libzmq aborted it at the first one that was due.
"""

import asyncio
import sys
import time

import zmq

from proto.sockets import HIGH_WATER_MARK, LoopSocket

STALL_S = 2.5
"""Two of the heartbeats that were, but not the three seconds after which they ended a connection."""
LINGER_MS = 1000


def send(endpoint: str, messages: list[bytes]) -> None:
    """As a peer that ends when everything is on its way, or as much as the kernel takes."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.set(zmq.SNDHWM, 0)
        peer.set(zmq.LINGER, LINGER_MS)  # Nobody reads meanwhile: without a limit it would wait for ever.
        peer.connect(endpoint)
        for message in messages:
            peer.send(message)


async def main(endpoint: str) -> None:
    another_one_is_heard = asyncio.Event()

    def look(frames: list[bytes]) -> None:
        if bytes(frames[-1]) == b"another":
            another_one_is_heard.set()

    router = LoopSocket(zmq.ROUTER, 1024, look)
    router.bind(endpoint)
    send(endpoint, [b""] * 4 * HIGH_WATER_MARK)
    time.sleep(STALL_S)  # noqa: ASYNC251, TID251 - the loop is to stand still
    send(endpoint, [b"another"])
    await another_one_is_heard.wait()
    router.close()


asyncio.run(main(sys.argv[1]))
