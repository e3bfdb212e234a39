"""Every socket of a running service, one after the other, while a good client is served."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Final

import grpc
from _pytest.outcomes import Failed
from fuzz.live.clients import GRPC_ATTACKS, HTTP_ATTACKS
from fuzz.live.peers import ATTACKS, HostileBroker, flood, strangers
from fuzz.live.watch import Watch
from processes.stack import Stack, free_ports
from zmq import ZMQError

MAX_STRANGERS: Final = 2000


def attack(frames: int, seed: int) -> Iterator[str]:
    """A line for each attack; one that begins with FOUND for each problem."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, part in (("clear", _in_clear), ("broker", _by_a_broker), ("encrypted", _encrypted)):
            try:
                yield from part(Path(folder, name), frames, seed)
            except (grpc.RpcError, Failed) as error:
                yield f"FOUND {name}: the service does not serve: {error!r}"


def _in_clear(folder: Path, frames: int, seed: int) -> Iterator[str]:
    folder.mkdir()
    with Stack(folder, over_tcp=True) as stack:
        stack.start(workers=2)
        endpoints = {
            role: str(stack.broker.settings[f"{role}_endpoint"]) for role in ("frontends", "workers")
        }
        for role, endpoint in endpoints.items():
            for name, (run, share) in ATTACKS.items():
                random, count = Random(f"{seed} {role} {name}"), _share(frames, share)
                yield from _watched(
                    stack,
                    f"{role}: {name}",
                    lambda run=run, endpoint=endpoint, count=count, random=random: run(
                        endpoint, count, random, {}
                    ),
                )
        for port, address, attacks in (
            ("http", stack.http, HTTP_ATTACKS),
            ("grpc", stack.address, GRPC_ATTACKS),
        ):
            for name, (act, share) in attacks.items():
                random, count = Random(f"{seed} {port} {name}"), _share(frames, share)
                yield from _watched(
                    stack,
                    f"{port}: {name}",
                    lambda act=act, address=address, count=count, random=random: act(address, count, random),
                )


def _by_a_broker(folder: Path, frames: int, seed: int) -> Iterator[str]:
    """The second of two brokers is hostile, to a worker and to the frontend."""
    folder.mkdir()
    ports = free_ports(2)
    of_frontend, of_worker = (f"tcp://127.0.0.1:{port}" for port in ports)
    brokers = {"frontend": HostileBroker(of_frontend), "worker": HostileBroker(of_worker)}
    try:
        with Stack(folder, over_tcp=True) as stack:
            settings = stack.frontend.settings
            settings["broker_endpoints"] = f"{settings['broker_endpoints']},{of_frontend}"
            stack._for_workers += f",{of_worker}"
            stack.start()
            for name, broker in brokers.items():
                random = Random(f"{seed} {name}")
                yield from _watched(
                    stack,
                    f"{name}, by a broker",
                    lambda broker=broker, random=random: broker.flood(frames, random),
                )
    finally:
        for broker in brokers.values():
            broker.close()


def _encrypted(folder: Path, frames: int, seed: int) -> Iterator[str]:
    """Strangers at an encrypted broker; then a worker's own key in hostile hands."""
    folder.mkdir()
    with Stack(folder, over_tcp=True, encrypted=True) as stack:
        stack.start()
        keys, endpoint = stack.curve, str(stack.broker.settings["workers_endpoint"])
        assert keys is not None
        count = min(MAX_STRANGERS, frames)
        yield from _watched(
            stack,
            "encrypted workers: strangers",
            lambda: strangers(endpoint, count, keys.options("stranger"), {}),
        )
        yield from _watched(
            stack,
            "encrypted workers: malformed",
            lambda: flood(endpoint, frames, Random(f"{seed} encrypted"), keys.options("worker")),
        )


def _share(frames: int, share: float) -> int:
    return max(1, round(frames * share))


def _watched(stack: Stack, name: str, run: Callable[[], int]) -> Iterator[str]:
    began_s = time.monotonic()
    sent = 0
    with Watch(stack, is_crowded=name == "grpc: resets") as watch:
        try:
            sent = run()
        except (AssertionError, OSError, ZMQError) as error:  # the service did not take it as it should
            watch.problems.append(f"{type(error).__name__}: {error}")
        took_s = time.monotonic() - began_s
    who, mib = max(watch.growth_mib.items(), key=lambda each: each[1])
    yield (
        f"{name:30} {sent:9,} in {took_s:6.1f} s  good jobs {watch.served}  refused {watch.refusals or 0}"
        f"  most growth {mib:.1f} MiB ({who})  counted {watch.shed or 0}"
    )
    yield from (f"FOUND {name}: {problem}" for problem in watch.problems)
