"""The wall clock jumps, of every process at once: nothing is measured by it."""

import datetime as dt
import struct
import subprocess
from pathlib import Path

from chaos.running_job import RunningJob
from processes.stack import Component, Stack, until

HOUR_S = 3600
SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    def __init__(self, folder: Path) -> None:
        self._library = folder / "wall_clock.so"
        self._shift = folder / "shift"
        self._shift.write_bytes(struct.pack("l", 0))
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", str(self._library), str(SOURCE)], check=True, timeout=60
        )

    @property
    def command(self) -> tuple[str, ...]:
        """What stands before a command that is to have this clock."""
        return ("env", f"LD_PRELOAD={self._library}", f"WALL_CLOCK_SHIFT={self._shift}")

    def jump_to(self, shift_s: int) -> None:
        with self._shift.open("r+b") as file:
            file.write(struct.pack("l", shift_s))


def ahead_s(component: Component, line: dict[str, str]) -> float:
    """How far the clock of the process that wrote this was ahead of the kernel's, which dated the log."""
    written_at = component.log_file(len(component.sessions) - 1).stat().st_mtime
    return dt.datetime.fromisoformat(line["timestamp"]).timestamp() - written_at


def test_row_36_the_wall_clock_jumps_by_an_hour_and_back(stack: Stack, tmp_path: Path) -> None:
    clock = WallClock(tmp_path)
    for component in (stack.broker, stack.frontend):
        component.through = clock.command
    worker = stack.prepared_worker("worker-1")
    worker.through = clock.command
    stack.start()
    for shift_s in (HOUR_S, -HOUR_S, 0):
        with stack.held():
            job = RunningJob.begin(stack, f"a gorge, {shift_s}", deadline_s=60.0)
            clock.jump_to(shift_s)
            heard = stack.metrics().brokers[0].age_seconds
            assert 0 <= heard < stack.timing.peer_lost_s
            asked = stack.client("client2").begin().refusal()
            assert asked.reason == "ALL_WORKERS_BUSY"
            line = until("the refusal is in the log", lambda: stack.broker.events("job refused"))[-1]
            assert abs(ahead_s(stack.broker, line) - shift_s) < HOUR_S / 2, "its clock has not jumped"
            assert stack.until_running().job_id == job.job_id
        job.first_image()
        stack.draws()
    assert not stack.broker.events("worker lost")
    assert not stack.broker.events("frontend lost")
    assert worker.events("job started")
    assert stack.executions() == 6
