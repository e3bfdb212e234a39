"""What the service adds to a bare gRPC server: `tox -e bench`, or `python -m benchmarks.serving`.

Both answer 1 MiB at once, in the same run, in rounds that alternate; each figure is the median of the rounds,
with the lowest and the highest. The callers share the machine with the servers: compare the columns, and
take no figure for a property of the service alone.
"""

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from benchmarks.serving.hops import median_hops_ms
from benchmarks.serving.load import Callers, Load
from benchmarks.serving.servers import IMAGE_BYTES, MAX_CALLERS, Server, echo, relay, service

CALLERS: Final = (1, 8, 32)
WARM_UP_CALLS: Final = 50
QUEUE_LIMIT: Final = max(CALLERS)
REFUSED_EACH: Final = 4
IDLE_S: Final = 5.0

Samples = dict[str, list[float]]


async def warm_up(server: Server) -> None:
    async with Callers(server.address, 1) as callers:
        await callers.first_answer()
        await callers.draw(WARM_UP_CALLS)


async def one_round(server: Server, calls: int, samples: Samples) -> None:
    """Add what this round shows of one server, by the name of the figure."""
    for count in CALLERS:
        async with Callers(server.address, count) as callers:
            await callers.first_answer()
            cpu_before = server.cpu_s()
            load = await callers.draw(max(1, calls // count))
        _add(samples, count, load, server.cpu_s() - cpu_before)


def _add(samples: Samples, count: int, load: Load, cpu_s: float) -> None:
    samples[f"{count} at a time: p50, ms"].append(load.p50_ms)
    samples[f"{count} at a time: p99, ms"].append(load.p99_ms)
    samples[f"{count} at a time: images/s"].append(load.per_second)
    samples[f"{count} at a time: CPU s per 1000"].append(cpu_s / len(load.latencies_s) * 1000)


async def compare(rounds: int, calls: int) -> None:
    samples: tuple[Samples, Samples, Samples] = (defaultdict(list), defaultdict(list), defaultdict(list))
    with echo() as bare, relay() as passing, service(queue_limit=QUEUE_LIMIT) as (whole, _):
        servers = (bare, passing, whole)
        for server in servers:
            await warm_up(server)
        idle = [[await _idle(server)] for server in servers]
        before = whole.cpu_of_each()
        for _ in range(rounds):
            for server, of_server in zip(servers, samples, strict=True):
                await one_round(server, calls, of_server)
        images = rounds * sum(max(1, calls // count) * count for count in CALLERS)
        spent = {name: (cpu - before[name]) / images * 1000 for name, cpu in whole.cpu_of_each().items()}
        memory = [[server.memory_mb()] for server in servers]
    print(f"{IMAGE_BYTES} bytes an image, {rounds} rounds of {calls} images; median (lowest to highest)\n")
    print("| | bare echo | the relay | the service | to the relay | to the echo |\n|---|---|---|---|---|---|")
    for name in samples[0]:
        _row_of_three(name, [of_server[name] for of_server in samples])
    _row_of_three("CPU when idle, % of a core", idle)
    _row_of_three("memory afterwards, MB", memory)
    shares = ", ".join(f"{name} {cpu:.2f}" for name, cpu in sorted(spent.items()))
    print(f"\nThe service's CPU seconds per 1000 images, by process: {shares}")


async def _idle(server: Server) -> float:
    before, began = server.cpu_s(), time.perf_counter()
    await asyncio.sleep(IDLE_S)
    return (server.cpu_s() - before) / (time.perf_counter() - began) * 100


async def hops(calls: int) -> None:
    with service(queue_limit=0) as (server, stack):
        await warm_up(server)
        async with Callers(server.address, 1) as callers:
            load = await callers.draw(calls)
        medians = median_hops_ms(stack)
    print(
        f"\nOne call at a time, {load.p50_ms:.1f} ms as the caller sees it, of which\n\n| | ms |\n|---|---|"
    )
    for hop, duration_ms in medians.items():
        print(f"| {hop} | {duration_ms:.2f} |")
    print(f"| outside the frontend: gRPC and the caller | {load.p50_ms - sum(medians.values()):.2f} |")


async def refusals(rounds: int) -> None:
    ping: list[float] = []
    refused: list[float] = []
    with service(queue_limit=0) as (server, stack), stack.held():
        holder = stack.client("holder").begin()
        stack.until_running()
        async with Callers(server.address, MAX_CALLERS) as callers:
            await callers.ping(1)
            for _ in range(rounds):
                ping.append((await callers.ping(REFUSED_EACH)).p99_ms)
                refused.append((await callers.be_refused(REFUSED_EACH)).p99_ms)
        holder.cancel()
    print(f"\n{MAX_CALLERS} callers at once while the only worker is busy\n")
    print("| | Ping | refused Generate | ratio |\n|---|---|---|---|")
    _row("p99, ms", ping, refused)


async def starts(rounds: int) -> None:
    bare: list[float] = []
    whole: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        with echo() as server:
            bare.append(await _first_answer(server, began))
        began = time.perf_counter()
        with service(queue_limit=0) as (server, _stack):
            whole.append(await _first_answer(server, began))
    print("\nFrom nothing to the first image\n")
    print("| | bare echo | the service | ratio |\n|---|---|---|---|")
    _row("s", bare, whole)


async def _first_answer(server: Server, began: float) -> float:
    async with Callers(server.address, 1) as callers:
        await callers.first_answer()
        return time.perf_counter() - began


def _row(name: str, bare: Sequence[float], whole: Sequence[float]) -> None:
    print(f"| {name} | {_spread(bare)} | {_spread(whole)} | {_ratio(whole, bare):.2f} |")


def _row_of_three(name: str, values: Sequence[Sequence[float]]) -> None:
    bare, passing, whole = values
    spreads = " | ".join(map(_spread, values))
    print(f"| {name} | {spreads} | {_ratio(whole, passing):.2f} | {_ratio(whole, bare):.2f} |")


def _ratio(whole: Sequence[float], part: Sequence[float]) -> float:
    return statistics.median(whole) / statistics.median(part) if statistics.median(part) else float("nan")


def _spread(values: Sequence[float]) -> str:
    median = f"{statistics.median(values):.4g}"
    return median if len(values) == 1 else f"{median} ({min(values):.4g} to {max(values):.4g})"


async def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.serving")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=300, help="images a round and number of callers")
    given = parser.parse_args()
    await compare(given.rounds, given.calls)
    await hops(given.calls)
    await refusals(given.rounds)
    await starts(given.rounds)


if __name__ == "__main__":
    asyncio.run(main())
