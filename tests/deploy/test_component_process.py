"""One real process under the launcher: its output, its end, and that it cannot outlive us."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from deploy import tied
from deploy.component_process import LAST_LINES, ComponentProcess
from deploy.readiness import listens
from deploy.stack import Component

LIMIT_S = 20.0


class Lines:
    """What a process wrote, and when."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._came = asyncio.Event()

    def __call__(self, name: str, line: str) -> None:
        assert name == "stub"
        self.all.append(line)
        self._came.set()

    async def until(self, line: str) -> None:
        async with asyncio.timeout(LIMIT_S):
            while line not in self.all:
                self._came.clear()
                await self._came.wait()


def stub(folder: Path, code: str) -> Component:
    (folder / "stub.py").write_text(code)
    return Component(name="stub", package="stub", environment={"PYTHONPATH": str(folder)})


async def test_all_lines_arrive_before_the_exit(tmp_path: Path) -> None:
    code = """
import sys
print("out"); print("err", file=sys.stderr); print()
print("x" * 200_000)
sys.stdout.buffer.write(b"bad \\xff byte\\n"); print("no newline at the end", end=""); sys.exit(7)
"""
    lines = Lines()
    process = await ComponentProcess.start(stub(tmp_path, code), lines)
    report = await asyncio.wait_for(process.wait(), LIMIT_S)
    assert report.status == 7
    assert {"out", "err", "bad \N{REPLACEMENT CHARACTER} byte", "no newline at the end"} <= set(lines.all)
    assert sum(line.count("x") for line in lines.all if not line.strip("x")) == 200_000
    assert report.last_lines == tuple(lines.all[-LAST_LINES:])


@pytest.mark.parametrize("name", ["API_KEYS", "api_keys"])
async def test_keys_of_the_environment_reach_only_whom_they_are_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("SOMETHING_ELSE", "passed on")
    plain = stub(tmp_path, "import os; [print(f'{k}={v}') for k, v in os.environ.items()]")
    planned = Component(
        name="stub", package="stub", environment={**plain.environment, "API_KEYS": "for the frontend"}
    )
    for component, keys in ((plain, []), (planned, ["API_KEYS=for the frontend"])):
        lines = Lines()
        process = await ComponentProcess.start(component, lines)
        await asyncio.wait_for(process.wait(), LIMIT_S)
        assert [line for line in lines.all if line.upper().startswith("API_KEYS=")] == keys
        assert "SOMETHING_ELSE=passed on" in lines.all


async def test_it_leads_a_session_of_its_own_and_can_be_killed(tmp_path: Path) -> None:
    lines = Lines()
    process = await ComponentProcess.start(
        stub(tmp_path, "print('up'); input_ = __import__('signal').pause()"), lines
    )
    await lines.until("up")
    assert os.getsid(process.pid) == process.pid
    process.kill()
    report = await asyncio.wait_for(process.wait(), LIMIT_S)
    assert report.status == -signal.SIGKILL
    process.terminate()  # too late, and no error


async def test_a_child_that_it_left_behind_goes_with_it(tmp_path: Path) -> None:
    code = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid)
"""
    lines = Lines()
    process = await ComponentProcess.start(stub(tmp_path, code), lines)
    await asyncio.wait_for(process.wait(), LIMIT_S)
    await asyncio.to_thread(_wait_until_gone, [int(lines.all[0])])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
async def test_it_dies_with_its_parent_even_if_that_is_killed() -> None:
    parent_code = f"""
import os, subprocess, sys
code = "import signal; print('up', flush=True); signal.pause()"
tied = [sys.executable, "-I", "-S", {tied.__file__!r}, str(os.getpid())]
child = subprocess.Popen([*tied, sys.executable, "-c", code])
print(child.pid, flush=True)
child.wait()
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent_code, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        lines = {await parent.stdout.readline(), await parent.stdout.readline()}
    (pid,) = [int(line) for line in lines if line.strip().isdigit()]
    assert psutil.pid_exists(pid)
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(_wait_until_gone, [pid])


async def test_it_does_not_start_under_a_stranger() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", tied.__file__, "1", sys.executable, "-c", "print('ran')"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert (process.returncode, output) == (tied.EXIT_PARENT_GONE, b"")


def test_whose_port_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(os.getpid(), port)
        assert not listens(os.getppid(), port)
    assert not listens(os.getpid(), port)


def _wait_until_gone(pids: list[int]) -> None:
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=LIMIT_S)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
