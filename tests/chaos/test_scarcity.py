"""Too little of what a process needs: memory, descriptors, a core; and too many callers."""

import asyncio
import contextlib
import signal
import socket
import time
from pathlib import Path

import pytest
from benchmarks.serving.load import Callers, key_names
from chaos.control_group import ControlGroup
from chaos.endless_message import begin_endless_message
from chaos.running_job import RunningJob
from processes.stack import SLACK_S, Component, Stack, until

MIB = 1024 * 1024
BROKER_BYTES = 160 * MIB
"""It needs some 50 MiB."""
ENDLESS_FRAMES = 4000
"""Of 256 KiB: more than it may have."""
DESCRIPTORS = {"broker": 64, "frontend": 64}
IDLE_CONNECTIONS = 100
CORE_SHARE = 0.05
THROTTLED = 10
"""Periods of 0.1 s, on a machine that is so busy that nobody gets much anyway."""
CALLERS = 500


def port_of(endpoint: object) -> int:
    return int(str(endpoint).rpartition(":")[2])


def test_row_28_a_message_without_end_fills_the_brokers_memory(stack: Stack) -> None:
    with ControlGroup("memory", "broker") as group:
        group.limit_memory(BROKER_BYTES)
        stack.broker.through = group.entrance
        stack.start()
        victim = stack.broker.life
        with stack.held():
            job = RunningJob.begin(stack, "a delta")
            taken = begin_endless_message(
                port_of(stack.broker.settings["frontends_endpoint"]), ENDLESS_FRAMES
            )
            assert stack.broker.ends() == -signal.SIGKILL
            assert not victim.is_running()
            assert taken < ENDLESS_FRAMES
            stack.broker.start()
        job.first_image()
        stack.draws()
        stack.stop()


@pytest.mark.parametrize("package", ["broker", "frontend"])
def test_row_29_a_process_without_free_descriptors_recovers(stack: Stack, package: str) -> None:
    component: Component = getattr(stack, package)
    component.through = ("prlimit", f"--nofile={DESCRIPTORS[package]}")
    stack.start()
    process = component.life
    port = port_of(stack.broker.settings["workers_endpoint"] if package == "broker" else stack.address)
    with stack.held():
        job = RunningJob.begin(stack, "a geyser")
        with contextlib.ExitStack() as idle:
            for _ in range(IDLE_CONNECTIONS):
                idle.enter_context(socket.create_connection(("127.0.0.1", port)))
            until("none is free", lambda: process.num_fds() >= DESCRIPTORS[package] - 2)
            assert job.call.is_open
        until("most are free again", lambda: process.num_fds() < DESCRIPTORS[package] / 2)
    job.first_image()
    worker = stack.workers["worker-1"]
    worker.kill()
    worker.start()
    worker.until_event("engine ready")  # It has found a connection.
    stack.draws()
    assert component.life == process


def test_row_37_processes_that_hardly_get_a_core_are_not_taken_for_lost(service: Stack) -> None:
    with contextlib.ExitStack() as kept:
        groups = [kept.enter_context(ControlGroup("cpu", each.name)) for each in service.components]
        for group, component in zip(groups, service.components, strict=True):
            group.limit_cpu(CORE_SHARE)
            group.add(component.pid)
        with service.held():
            job = RunningJob.begin(service, "a canyon")
            lasts_until = time.monotonic() + 2 * service.timing.peer_lost_s

            def kept_waiting() -> bool:
                service.metrics()  # so that they have something to do
                throttled = sum(group.throttled for group in groups)
                return throttled > THROTTLED and time.monotonic() > lasts_until

            until("they were kept waiting for longer than a peer may be silent", kept_waiting)
            assert service.until_running().job_id == job.job_id
        job.first_image()
        service.draws()
    assert not service.broker.events("worker lost")
    assert not service.broker.events("frontend lost")
    assert service.executions() == 2


def test_row_38_hundreds_of_callers_too_many_are_told_so(tmp_path: Path) -> None:
    """At the real scale: what 500 calls take of a core does not shrink with it."""
    keys = key_names(CALLERS)
    with Stack(tmp_path, over_tcp=True, keys=(*keys, "first", "last")) as stack:
        stack.start()
        with stack.held():
            call = stack.client("first").begin("a mesa", seed=1)
            row = stack.until_running()

            async def refused() -> float:
                async with Callers(stack.address, CALLERS) as callers:
                    return (await callers.be_refused(2)).p99_ms

            p99_ms = asyncio.run(asyncio.wait_for(refused(), SLACK_S * 5))
            print(f"{2 * CALLERS} refusals, {CALLERS} at a time: p99 {p99_ms:.0f} ms")
            assert stack.until_running().job_id == row.job_id
            assert stack.metrics().rejected["ALL_WORKERS_BUSY"] == 2 * CALLERS
        assert call.image().seed == 1
        stack.draws("last")
