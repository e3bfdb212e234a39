"""One fault each, and how long it took until the service had recovered from it, in seconds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from hosts.cluster import Cluster
from processes.stack import Component, OpenCall, Stack, until

LOOK_S: Final = 0.005
"""Finer than in tests."""
SAMPLE_CLIENT: Final = Path(__file__).parents[3] / "examples" / "generate.py"


def until_logged(component: Component, event: str, after: int = 0, **facts: object) -> dict[str, Any]:
    """The first such line behind so many others of this event."""

    def look() -> dict[str, Any] | None:
        lines = component.events(event)[after:]
        return next((line for line in lines if facts.items() <= line.items()), None)

    return until(f"{component.name} logs {event!r}", look, poll_s=LOOK_S)


def killed_broker(stack: Stack) -> float:
    """The call comes while there is no broker; if that takes too long, and it is refused, it is repeated."""
    stack.draws()
    victim, client = stack.broker.life, stack.client()
    began_at = time.monotonic()
    stack.broker.kill()
    call = client.begin(steps=1)
    stack.broker.start()

    def is_dispatched() -> bool:
        nonlocal call
        if not call.is_open:
            call = client.begin(steps=1)
        return bool(stack.broker.events("job dispatched"))

    until("a job is dispatched", is_dispatched, poll_s=LOOK_S)
    took_s = time.monotonic() - began_at
    assert stack.broker.life != victim
    call.image()
    return took_s


def killed_worker(stack: Stack) -> float:
    stack.draws()
    with stack.held():
        call = stack.client().begin()
        row = stack.until_running()
        victim = stack.workers[row.worker_id]
        began_at = time.monotonic()
        victim.kill()
        took_s = until_dispatched_again(stack.broker, row.job_id, row.worker_id, began_at)
    call.image()
    victim.start()
    stack.until_state(victim.name, "ready")
    return took_s


def until_dispatched_again(broker: Component, job_id: str, lost: str, began_at: float) -> float:
    again = until_logged(broker, "job dispatched", job_id=job_id, attempt=2)
    took_s = time.monotonic() - began_at
    assert again["worker_id"] != lost
    return took_s


def blackholed_worker(cluster: Cluster) -> float:
    """Its cable carries nothing any more; it goes on running."""
    cluster.until_idle()
    call: OpenCall = cluster.client().begin()
    with cluster.held():
        row = cluster.until_running(call)
        began_at = time.monotonic()
        cluster.network.unplug(row["worker_id"])
        took_s = until_dispatched_again(
            cluster.components["broker-1"], row["job_id"], row["worker_id"], began_at
        )
    call.image()
    cluster.network.heal()
    return took_s


def killed_engine(stack: Stack) -> float:
    stack.until_state("worker-1", "ready")
    assert stack.client().draw().image_png
    worker = stack.workers["worker-1"]
    victim, ready = worker.engine(), len(worker.events("engine ready"))
    began_at = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    until_logged(worker, "engine ready", ready)
    took_s = time.monotonic() - began_at
    assert worker.engine() != victim
    return took_s


def frozen_client(stack: Stack) -> float:
    stack.draws()
    command = [sys.executable, str(SAMPLE_CLIENT), stack.address, "client1"]
    with stack.held(), subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
        try:
            job_id = stack.until_running().job_id
            began_at = time.monotonic()
            os.kill(client.pid, signal.SIGSTOP)
            until_logged(stack.workers["worker-1"], "job ended", job_id=job_id)
            return time.monotonic() - began_at
        finally:
            client.kill()
