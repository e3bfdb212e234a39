"""The forkserver of engine processes: it keeps nobody waiting, is replaced when it dies, and dies in time."""

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from samples.watched_engine import LIMIT_S, fake, started

from gpu_worker import engine_forkserver, engine_process
from gpu_worker.engine_forkserver import ensure_forkserver, preload_modules
from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.events import EngineExited, EngineLoading, EngineReady
from gpu_worker.model_store import Embedded, EngineChoice, FluxFolder
from gpu_worker.preload_request import PRELOAD_MODULE, PRELOAD_REQUEST, PreloadRequest
from gpu_worker.process_handle import ProcessHandle


class Gate:
    """A module that a forkserver imports until somebody opens the gate."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fifo = folder / "gate"
        os.mkfifo(self._fifo)
        (folder / "gated_library.py").write_text(f"open({str(self._fifo)!r}).read()\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(folder), *sys.path)))
        monkeypatch.setattr(engine_forkserver, "preload_modules", self._modules)

    def _modules(self, choice: EngineChoice) -> tuple[str, ...]:
        return ("gated_library", *preload_modules(choice))

    async def open(self) -> None:
        """Waits until somebody stands before it."""
        (await asyncio.to_thread(self._fifo.open, "w")).close()


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    end_forkserver()
    yield Gate(tmp_path, monkeypatch)
    end_forkserver()


def present_forkserver() -> ProcessHandle:
    return ensure_forkserver(fake(), EngineOptions())


def end_forkserver() -> None:
    """The next engine process gets a new one."""
    forkserver = present_forkserver()
    forkserver.kill()
    assert forkserver.ends(LIMIT_S)


async def test_the_event_loop_goes_on_while_the_libraries_are_imported(gate: Gate) -> None:
    async with started(fake()) as watched:
        loading = await watched.until(EngineLoading)
        assert (loading.activity, loading.percent) == ("importing the libraries", 0)
        assert watched.process.pid is None, "the forkserver has not served anybody yet"
        await gate.open()
        await watched.until(EngineReady)


async def test_a_kill_ends_a_start_that_takes_for_ever(gate: Gate) -> None:
    async with started(fake()) as watched:
        watched.process.kill()
        exited = await watched.until(EngineExited)
        assert exited.reason == "killed by SIGKILL"
        assert watched.process.pid is None
    async with started(fake()) as successor:
        await gate.open()
        await successor.until(EngineReady)


async def test_an_interrupt_does_not_reach_it(gate: Gate) -> None:
    async with started(fake()) as watched:
        os.kill(present_forkserver().pid, signal.SIGINT)
        await gate.open()
        await watched.until(EngineReady)
        os.kill(present_forkserver().pid, signal.SIGINT)
    async with started(fake()) as successor:
        await successor.until(EngineReady)


async def test_engine_processes_come_from_one_forkserver() -> None:
    parents = set()
    for _ in range(2):
        async with started(fake()) as watched:
            parents.add(psutil.Process(await watched.until_made()).ppid())
    assert parents == {present_forkserver().pid}


async def test_one_that_was_killed_is_replaced_and_its_engine_has_exited() -> None:
    async with started(fake()) as watched:
        await watched.until(EngineReady)
        killed = present_forkserver()
        killed.kill()
        exited = await watched.until(EngineExited)
        assert exited.reason == ("its forkserver was killed, not by this worker: perhaps for lack of memory")
    async with started(fake()) as successor:
        await successor.until(EngineReady)
        assert present_forkserver().pid != killed.pid


async def test_a_frozen_one_costs_the_exit_code_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "_EXIT_GRACE_S", 0.1)
    async with started(fake()) as watched:
        await watched.until(EngineReady)
        frozen = present_forkserver()
        os.kill(frozen.pid, signal.SIGSTOP)
        os.kill(await watched.until_made(), signal.SIGTERM)
        exited = await watched.until(EngineExited)
        assert exited.reason == "ended in an unknown way"
        assert frozen.ends(LIMIT_S)
    async with started(fake()) as successor:
        await successor.until(EngineReady)


async def test_a_library_that_cannot_be_imported_is_left_to_the_engine_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_forkserver()
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('version mismatch')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    modules = ("broken_library", "no_such_library", *preload_modules(fake()))
    monkeypatch.setattr(engine_forkserver, "preload_modules", lambda _choice: modules)
    async with started(fake()) as watched:
        await watched.until(EngineReady)
    end_forkserver()


async def test_one_that_ends_while_it_imports_is_an_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_forkserver()
    (tmp_path / "fatal_library.py").write_text("import os; os._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    with monkeypatch.context() as patched:
        patched.setattr(engine_forkserver, "preload_modules", lambda _choice: ("fatal_library",))
        async with started(fake()) as watched:
            exited = await watched.until(EngineExited)
            assert exited.reason == "cannot start an engine process: its forkserver has ended"
    async with started(fake()) as successor:
        await successor.until(EngineReady)


async def test_a_missing_library_is_the_engine_process_s_to_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_forkserver()
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so is missing')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), *sys.path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    async with started(Embedded(warning="")) as watched:
        exited = await watched.until(EngineExited)
        assert exited.hopeless
        assert "a library of the engine cannot be imported: ImportError: libcudart.so" in exited.reason
    end_forkserver()


async def test_an_unprepared_forkserver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    end_forkserver()
    monkeypatch.setattr(engine_forkserver, "PRELOAD_MODULE", "no_such_module")
    async with started(fake()) as watched:
        exited = await watched.until(EngineExited)
        assert exited.hopeless
        assert exited.reason == f"the forkserver could not import {PRELOAD_MODULE}"
    end_forkserver()


async def test_without_pidfd_open_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    end_forkserver()
    monkeypatch.setattr(os, "pidfd_open", refuse)
    async with started(fake()) as watched:
        exited = await watched.until(EngineExited)
        assert "cannot start an engine process" in exited.reason
        assert "pidfd_open(2), of Linux 5.3, fails: Operation not permitted" in exited.reason


def test_it_serves_below_the_deepest_temporary_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    script = (
        "import multiprocessing.util, tempfile; from gpu_worker import engine_forkserver;"
        "engine_forkserver._make_socket_folder();"
        "print(multiprocessing.util.get_temp_dir(), tempfile.gettempdir())"
    )
    environment = os.environ | {"TMPDIR": str(deep), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    sockets, others = done.stdout.split()
    assert Path(sockets).parent == Path("/tmp")
    assert not Path(sockets).exists(), "removed at the end"
    assert Path(others) == deep


def test_what_is_preloaded_is_what_the_engine_imports(tmp_path: Path) -> None:
    assert preload_modules(fake())[-1] == "gpu_worker.engines.fake"
    assert preload_modules(FluxFolder(path=tmp_path))[-1] == "gpu_worker.engines.flux"
    assert preload_modules(Embedded(warning=""))[-1] == "gpu_worker.engines.flux"


def test_a_request_survives_the_environment() -> None:
    request = PreloadRequest(worker_pid=7, cuda_visible_devices='GPU-1,\n"0"', modules=("a", "b.c"))
    assert PreloadRequest.from_json(request.to_json()) == request


def test_the_request_stays_out_of_the_workers_environment() -> None:
    present_forkserver()
    assert PRELOAD_REQUEST not in os.environ


def import_preload(path: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import {PRELOAD_MODULE}"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nobody_else_imports_the_preload_module() -> None:
    done = import_preload(sys.path, {})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert PRELOAD_REQUEST in done.stderr


def test_a_worker_that_died_first_is_noticed() -> None:
    request = PreloadRequest(worker_pid=-1, cuda_visible_devices=None, modules=("no_such_module",))
    done = import_preload(sys.path, {PRELOAD_REQUEST: request.to_json()})
    assert (done.returncode, done.stderr) == (0, ""), "it ends without a word, and imports nothing"


PARENT = """
import asyncio, sys
from gpu_worker import engine_forkserver, engine_process
from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engine_process import EngineProcess
from gpu_worker.engines.engine import EngineJob
from gpu_worker.events import EngineLoading, EngineProgress, EngineReady
from gpu_worker.model_store import Fake
from gpu_worker.process_handle import ProcessHandle
from proto.messages import ImageParameters

moment, prompt = sys.argv[1:]

class TellingHandle(ProcessHandle):
    def __init__(self, pid):
        super().__init__(pid)
        print(pid, flush=True)

async def run():
    parameters = ImageParameters(height=8, width=8, steps=1000, guidance=1.0, seed=1)
    job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt=prompt, parameters=parameters)

    def hear(event):
        if isinstance(event, EngineReady):
            engine.run(job)
        is_loading = isinstance(event, EngineLoading) and event.activity == "pretending to load"
        is_drawing = isinstance(event, EngineProgress) and event.step == 1
        if is_loading and moment == "loading" or is_drawing and moment == "drawing":
            print(engine.pid, flush=True)

    if moment == "importing":
        engine_forkserver.preload_modules = lambda choice: ("waits_for_ever",)
        engine_forkserver.ProcessHandle = TellingHandle
    if moment == "starting":
        engine_process.ProcessHandle = TellingHandle
    load_s = 600.0 if moment == "loading" else 0.0
    engine = EngineProcess(1, Fake(step_s=0.01, load_s=load_s, faults=True), EngineOptions(), hear)
    engine.start()
    await asyncio.Event().wait()

if __name__ == "__main__":
    asyncio.run(run())
"""


@pytest.mark.parametrize(
    ("moment", "prompt", "freeze"),
    [
        # The kernel is perhaps not yet asked to end them with the worker: they must look by themselves.
        ("importing", "", False),
        ("starting", "", False),
        ("loading", "", False),
        ("loading", "", True),
        ("drawing", "busy", False),
        ("drawing", "busy", True),
        ("drawing", "!hang@2", False),
        ("drawing", "!hang@2", True),
    ],
)
def test_a_killed_worker_leaves_no_process_behind(
    tmp_path: Path, moment: str, prompt: str, freeze: bool
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "waits_for_ever.py").write_text("import threading; threading.Event().wait()\n")
    path = os.pathsep.join((str(tmp_path), *sys.path))
    command = [sys.executable, script, moment, prompt]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as worker:
        assert worker.stdout is not None
        told_pid = int(worker.stdout.readline())
        children = [child.pid for child in psutil.Process(worker.pid).children(recursive=True)]
        exits = [os.pidfd_open(pid) for pid in children]
        if freeze:
            forkserver_pid = psutil.Process(told_pid).ppid()
            assert forkserver_pid != worker.pid
            os.kill(forkserver_pid, signal.SIGSTOP)
            os.kill(told_pid, signal.SIGSTOP)
        worker.kill()
    assert told_pid in children
    try:
        assert all(has_ended(exit_) for exit_ in exits)
    finally:
        for exit_ in exits:
            os.close(exit_)


def has_ended(pidfd: int) -> bool:
    """Waits for it."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(LIMIT_S * 1000))
