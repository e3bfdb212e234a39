"""The worker's forkserver: engine processes are forked from it, with their libraries imported already.

It dies with the worker, and its children die with it. multiprocessing has one in a process; it is replaced
when it has died, at the start of the next engine process.
"""

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Final, assert_never

from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.model_store import Embedded, EngineChoice, Fake, FluxFolder
from gpu_worker.preload_request import PRELOAD_MODULE, PRELOAD_REQUEST, PreloadRequest
from gpu_worker.process_handle import ProcessHandle

_SOCKET_FOLDER_MAX_BYTES: Final = 107 - len("/pymp-01234567/listener-01234567")
"""A unix socket's path holds 107 bytes; multiprocessing adds this to the temporary folder."""


def preload_modules(choice: EngineChoice) -> tuple[str, ...]:
    """What an engine process of this choice imports."""
    match choice:
        case Fake():
            return ("gpu_worker.engine_child", "gpu_worker.engines.fake")
        case FluxFolder() | Embedded():
            return ("torch", "gpu_worker.engine_child", "gpu_worker.engines.flux")
        case _:
            assert_never(choice)


_handles: Final[list[ProcessHandle]] = []
"""The present forkserver, or the last one, if there was any."""


def ensure_forkserver(choice: EngineChoice, options: EngineOptions) -> ProcessHandle:
    """The forkserver, made now if there is none; one that lives is taken as it is. Returns at once, while
    a new one is still importing. To be called in the main thread: the kernel ties its life to this thread.

    Raises:
        OSError: it cannot be made.
    """
    request = PreloadRequest(
        worker_pid=os.getpid(),
        cuda_visible_devices=options.cuda_visible_devices,
        modules=preload_modules(choice),
    )
    multiprocessing.get_context("forkserver").set_forkserver_preload([PRELOAD_MODULE])
    _make_socket_folder()
    # In this order: the first starts the resource tracker, whose environment the request is not for.
    with _interrupt_blocked(), _environment(PRELOAD_REQUEST, request.to_json()):
        multiprocessing.forkserver.ensure_running()
    return _handle_of(_present_pid())


def _present_pid() -> int:
    # Python does not tell it in any other way; it is the same in all versions from 3.4 to 3.14.
    pid = getattr(multiprocessing.forkserver._forkserver, "_forkserver_pid", None)
    if not isinstance(pid, int):
        raise OSError("this version of Python does not tell its forkserver's pid")
    return pid


def _handle_of(pid: int) -> ProcessHandle:
    if _handles and (_handles[0].pid != pid or _handles[0].ends(0)):
        _handles.pop().close()
    if not _handles:
        _handles.append(ProcessHandle(pid))
    return _handles[0]


def _make_socket_folder() -> None:
    """multiprocessing makes it once, where the system's temporary files are: that can be too deep."""
    wanted = tempfile.gettempdir()
    if len(os.fsencode(wanted)) <= _SOCKET_FOLDER_MAX_BYTES:
        return
    tempfile.tempdir = "/tmp"  # noqa: S108 - it makes a private folder there
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = wanted


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Ctrl-C reaches the whole process group; what is started in here is deaf to it from the start."""
    # Before blocking: starting the tracker would unblock the signal again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
