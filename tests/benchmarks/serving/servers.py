"""What is measured, as processes: the service with a fake engine, and the bare echo."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from benchmarks.serving.load import key_names
from processes.stack import Stack, processes_of

IMAGE_BYTES: Final = 1024 * 1024
MAX_CALLERS: Final = 500


@dataclass(frozen=True, slots=True)
class Server:
    address: str
    processes: Sequence[psutil.Process]

    def cpu_s(self) -> float:
        """That all of its processes have used until now."""
        times = [process.cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)

    def memory_mb(self) -> float:
        """What is shared counts in parts."""
        return sum(process.memory_full_info().pss for process in self.processes) / 1e6

    def cpu_of_each(self) -> dict[str, float]:
        """By a name for people."""
        return {_name(process): sum(process.cpu_times()[:2]) for process in self.processes}


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    module = words[words.index("-m") + 1] if "-m" in words else ""
    return module or ("engine or forkserver" if "multiprocessing" in " ".join(words) else words[0])


@contextmanager
def echo() -> Iterator[Server]:
    command = [sys.executable, "-m", "benchmarks.serving.echo_server", "--image-bytes", str(IMAGE_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Server(f"127.0.0.1:{port}", [psutil.Process(process.pid)])
        finally:
            process.kill()


@contextmanager
def relay() -> Iterator[Server]:
    """Processes as the service's, which pass on and decide nothing."""
    with tempfile.TemporaryDirectory(prefix="flux-bench-") as folder, ExitStack() as stack:
        processes, said = [], ""
        for role in ("broker", "worker", "frontend"):
            command = [sys.executable, "-m", "benchmarks.serving.relay", role, f"--image-bytes={IMAGE_BYTES}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
            stack.callback(_end, process)
            processes.append(process)
            if role == "worker":
                _line_of(processes[0])  # It has heard its worker.
            elif role == "frontend":
                said = _line_of(process)
        all_of_them = [
            each
            for process in map(psutil.Process, (process.pid for process in processes))
            for each in (process, *process.children(recursive=True))
        ]
        yield Server(f"127.0.0.1:{int(said)}", all_of_them)


def _line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


@contextmanager
def service(*, queue_limit: int) -> Iterator[tuple[Server, Stack]]:
    """Ready, with one worker whose engine answers at once."""
    with (
        tempfile.TemporaryDirectory(prefix="flux-bench-") as folder,
        Stack(Path(folder), keys=(*key_names(MAX_CALLERS), "holder")) as stack,
    ):
        stack.broker.settings.update(queue_limit=queue_limit, is_first=True)
        stack.start(fake_step_s=0, fake_png_bytes=IMAGE_BYTES)
        yield Server(stack.address, processes_of(stack.sessions)), stack
