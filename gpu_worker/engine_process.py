"""The worker's side of its engine process: starting, feeding, killing and reaping it.

Nothing here ever waits on the event loop: a thread of its own listens to the process, which may be frozen.
"""

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, TypeVarTuple, Unpack

import structlog

from gpu_worker.engine_child import run_engine
from gpu_worker.engine_pipe import CancelCommand, Command, EngineMessage, EngineOptions, LastWords, RunCommand
from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.error_text import first_line
from gpu_worker.events import EngineEvent, EngineExited
from gpu_worker.model_store import EngineChoice

_EXIT_GRACE_S: Final = 5.0
"""How long a process that has closed its pipe may take to end."""

Ts = TypeVarTuple("Ts")

log = structlog.get_logger()


class EngineProcess:
    """One engine process, from start to end. It is never started again: its successor is another object.

    `on_event` is called on the event loop, in the order in which things happened. After a `start()` exactly
    one `EngineExited` comes, as the last event, when the process has been reaped.
    """

    def __init__(
        self,
        child: int,
        choice: EngineChoice,
        options: EngineOptions,
        on_event: Callable[[EngineEvent], None],
    ) -> None:
        self._child = child
        self._choice = choice
        self._options = options
        self._on_event = on_event
        self._gone = asyncio.Event()
        self._reaping = threading.Lock()
        self._reaped = False
        self._kill_requested = False
        self._process: BaseProcess | None = None
        self._pipe: Connection[Command, EngineMessage] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process. To be called on the event loop, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            # The kernel ties the child's life to the thread that made it.
            raise RuntimeError("an engine process must be started from the main thread")
        self._loop = asyncio.get_running_loop()
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=True)
        arguments = (theirs, self._child, self._choice, self._options, os.getpid())
        process = context.Process(
            target=run_engine, args=arguments, name=f"engine-{self._child}", daemon=True
        )
        try:
            with _interrupt_blocked():
                process.start()
        except OSError as error:
            ours.close()
            last_words = LastWords(reason=f"cannot start an engine process: {first_line(error)}")
            self._loop.call_soon(self._end, last_words)
            return
        finally:
            theirs.close()
        self._process, self._pipe = process, ours
        threading.Thread(
            target=self._listen,
            args=(process, process.pid, ours),
            name=f"engine-{self._child}-listener",
            daemon=True,
        ).start()

    def run(self, job: EngineJob) -> None:
        """Hand over a job. If the process is dead already, `EngineExited` says so."""
        self._send(RunCommand(job=job))

    def cancel(self, execution_id: bytes) -> None:
        """Ask it to stop at the next step; `EngineFailed` follows, or `EngineDrawn` if it was too late."""
        self._send(CancelCommand(execution_id=execution_id))

    def kill(self) -> None:
        """Kill the process, whatever it does. Harmless if it is dead."""
        with self._reaping:
            if self._process is not None and not self._reaped:
                self._kill_requested = True
                self._process.kill()

    async def wait_gone(self) -> None:
        """Until `EngineExited` has been delivered."""
        await self._gone.wait()

    def _send(self, command: Command) -> None:
        # A job at a time and a few cancels: far less than the pipe holds, so this never blocks.
        if self._pipe is None:
            return
        try:
            self._pipe.send(command)
        except OSError as error:
            log.debug("engine process did not take a command", child=self._child, error=first_line(error))

    def _listen(self, process: BaseProcess, pid: int, pipe: "Connection[Command, EngineMessage]") -> None:
        """In the listener thread: pass on what the process says until it is gone."""
        last_words = self._pass_on(pipe)
        if not multiprocessing.connection.wait([process.sentinel], _EXIT_GRACE_S):
            log.warning(
                "engine process does not end by itself and is killed", child=self._child, pid=process.pid
            )
            self.kill()
        self._reap(process, pid)
        pipe.close()
        self._call(self._end, last_words or LastWords(reason=self._exit_reason(process.exitcode)))

    def _pass_on(self, pipe: "Connection[Command, EngineMessage]") -> LastWords | None:
        last_words = None
        while True:
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                return last_words
            except Exception as error:  # noqa: BLE001 - a dying process can write anything
                self.kill()
                return LastWords(reason=f"wrote nonsense to its pipe: {first_line(error)}")
            if isinstance(message, LastWords):
                last_words = message
            else:
                self._call(self._on_event, message)

    def _reap(self, process: BaseProcess, pid: int) -> None:
        try:
            # Waits without reaping, so that the pid stays valid for a `kill()` in the meantime.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            log.debug("engine process was reaped elsewhere", child=self._child)
        with self._reaping:
            process.join()
            self._reaped = True

    def _exit_reason(self, exit_code: int | None) -> str:
        if exit_code is None:
            return "ended in an unknown way"
        if exit_code >= 0:
            return f"ended with exit code {exit_code}"
        name = (
            signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else f"signal {-exit_code}"
        )
        by_others = -exit_code == signal.SIGKILL and not self._kill_requested
        return f"killed by {name}{', not by this worker: perhaps for lack of memory' if by_others else ''}"

    def _end(self, words: LastWords) -> None:
        """`words` are the process's own, or what can be said of a silent one."""
        exited = EngineExited(
            child=self._child, reason=words.reason, hopeless=words.hopeless, code=words.code
        )
        self._on_event(exited)
        self._gone.set()

    def _call(self, function: Callable[[Unpack[Ts]], None], *arguments: *Ts) -> None:
        """On the event loop, from the listener thread."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            log.debug("nobody listens to the engine process any more", child=self._child)


@contextmanager
def _interrupt_blocked() -> Iterator[None]:
    """Ctrl-C reaches the whole process group; a child started in here is deaf to it from the start."""
    # Before blocking: starting the tracker would unblock the signal again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
