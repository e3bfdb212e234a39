"""The worker's side of its engine process: having it started, feeding and killing it.

Nothing here ever waits on the event loop: a thread of its own listens to the process, which may be frozen.
"""

import asyncio
import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final, TypeVarTuple, Unpack

import structlog

from gpu_worker.engine_child import run_engine
from gpu_worker.engine_forkserver import ensure_forkserver
from gpu_worker.engine_pipe import (
    CancelCommand,
    Command,
    EngineMessage,
    EngineOptions,
    LastWords,
    RunCommand,
    receive_message,
)
from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.error_text import first_line
from gpu_worker.events import EngineEvent, EngineExited, EngineLoading, EngineProgress
from gpu_worker.model_store import EngineChoice
from gpu_worker.process_handle import ProcessHandle

_EXIT_GRACE_S: Final = 5.0
"""How long a process that has closed its pipe may take to end, and then its exit code to arrive."""
_KILLED: Final = "killed by SIGKILL"
_NOT_BY_US: Final = "not by this worker: perhaps for lack of memory"
_FORKSERVER_GONE: Final = 255
"""The exit code that multiprocessing gives where the forkserver can no longer tell the true one."""

Ts = TypeVarTuple("Ts")

log = structlog.get_logger()


class EngineProcess:
    """One engine process, from start to end. It is never started again: its successor is another object.

    `on_event` is called on the event loop, in the order in which things happened. After a `start()` exactly
    one `EngineExited` comes, as the last event, when the process has ended.
    """

    def __init__(
        self,
        child: int,
        choice: EngineChoice,
        options: EngineOptions,
        on_event: Callable[[EngineEvent], None],
        *,
        every_step: bool = False,
    ) -> None:
        """`every_step`: also the progress that has been overtaken when it is heard."""
        self._child = child
        self._choice = choice
        self._options = options
        self._on_event = on_event
        self._every_step = every_step
        self._gone = asyncio.Event()
        self._killing = threading.Lock()
        self._to_kill: ProcessHandle | None = None
        """The forkserver, then the process, and nothing once that has ended."""
        self._kill_requested = False
        self._pid: int | None = None
        self._pipe: Connection[Command, EngineMessage] | None = None
        self._undelivered: deque[EngineEvent] = deque()

    @property
    def pid(self) -> int | None:
        """None until it is made: a new forkserver imports the libraries first."""
        return self._pid

    def start(self) -> None:
        """Have the process started. To be called on the event loop, in the main thread; returns at once."""
        if threading.current_thread() is not threading.main_thread():
            # The kernel ties the forkserver's life to the thread that made it.
            raise RuntimeError("an engine process must be started from the main thread")
        self._loop = asyncio.get_running_loop()
        loading = EngineLoading(child=self._child, activity="importing the libraries", percent=0)
        self._loop.call_soon(self._on_event, loading)
        try:
            forkserver = ensure_forkserver(self._choice, self._options)
            self._pipe, theirs = multiprocessing.get_context("forkserver").Pipe(duplex=True)
        except OSError as error:
            self._loop.call_soon(self._end, self._cannot_start(error))
            return
        self._to_kill = forkserver
        threading.Thread(
            target=self._follow,
            args=(forkserver, self._pipe, theirs),
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
        """Kill the process, whatever it does. Harmless if it is dead.

        One that is not made yet is prevented by killing the forkserver.
        """
        with self._killing:
            if self._to_kill is not None:
                self._kill_requested = True
                self._to_kill.kill()

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

    def _follow(
        self,
        forkserver: ProcessHandle,
        ours: "Connection[Command, EngineMessage]",
        theirs: "Connection[EngineMessage, Command]",
    ) -> None:
        """In the listener thread: have the process made, and pass on what it says until it is gone."""
        try:
            with theirs:
                process, handle = self._make(forkserver, theirs)
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no process, and that is its end
            self._replace(forkserver)
            words = LastWords(reason=_KILLED) if self._kill_requested else self._cannot_start(error)
        else:
            last_words = self._listen(process, handle, ours)
            exit_code = process.exitcode
            if exit_code in {None, _FORKSERVER_GONE}:
                self._replace(forkserver)
            words = last_words or LastWords(reason=self._exit_reason(exit_code))
        ours.close()
        self._call(self._end, words)

    def _make(
        self, forkserver: ProcessHandle, theirs: "Connection[EngineMessage, Command]"
    ) -> tuple[BaseProcess, ProcessHandle]:
        """Blocks while a new forkserver imports. Raises `OSError`, `EOFError`: there is no process."""
        process = multiprocessing.get_context("forkserver").Process(
            target=run_engine,
            args=(theirs, self._child, self._choice, self._options, forkserver.pid),
            name=f"engine-{self._child}",
            daemon=True,
        )
        if self._is_to_die():
            # Starting would make another forkserver, of which nobody knows.
            raise ConnectionError("killed before it was made")
        process.start()
        if process.pid is None:
            raise OSError("the forkserver did not tell the pid")
        self._pid = process.pid
        handle = ProcessHandle(process.pid)
        with self._killing:
            self._to_kill = handle
            if self._kill_requested:
                # The forkserver was killed just after it had made the process.
                handle.kill()
        return process, handle

    def _is_to_die(self) -> bool:
        with self._killing:
            return self._kill_requested

    def _listen(
        self, process: BaseProcess, handle: ProcessHandle, pipe: "Connection[Command, EngineMessage]"
    ) -> LastWords | None:
        """Until the process is gone, and its exit code known if it can be."""
        last_words = self._pass_on(pipe)
        if not handle.ends(_EXIT_GRACE_S):
            log.warning(
                "engine process does not end by itself and is killed", child=self._child, pid=handle.pid
            )
            self.kill()
        handle.ends()
        with self._killing:
            self._to_kill = None
        handle.close()
        process.join(_EXIT_GRACE_S)
        return last_words

    def _replace(self, forkserver: ProcessHandle) -> None:
        """It is dead, frozen or broken: the next process gets a new one."""
        forkserver.kill()
        if not forkserver.ends(_EXIT_GRACE_S):
            log.warning("forkserver does not die", child=self._child, pid=forkserver.pid)

    def _pass_on(self, pipe: "Connection[Command, EngineMessage]") -> LastWords | None:
        last_words = None
        while True:
            try:
                message = receive_message(pipe)
            except (EOFError, OSError):
                return last_words
            except Exception as error:  # noqa: BLE001 - a dying process can write anything
                self.kill()
                log.error("nonsense from the engine process", child=self._child, error=first_line(error))
                return LastWords(reason=f"wrote nonsense to its pipe ({type(error).__name__}, see the log)")
            if isinstance(message, LastWords):
                last_words = message
            else:
                self._deliver(message)

    def _deliver(self, event: EngineEvent) -> None:
        """Those that come together wake the event loop once."""
        self._undelivered.append(event)
        if len(self._undelivered) == 1:  # Asked after the fact: the loop may be taking out the last one.
            self._call(self._hand_over)

    def _hand_over(self) -> None:
        try:
            while self._undelivered:
                event = self._undelivered.popleft()
                is_overtaken = isinstance(event, EngineProgress) and self._is_next(EngineProgress)
                if self._every_step or not is_overtaken:
                    self._on_event(event)
        finally:
            if self._undelivered:  # After an error, which the loop logs.
                self._loop.call_soon(self._hand_over)

    def _is_next(self, kind: type[EngineEvent]) -> bool:
        return bool(self._undelivered) and isinstance(self._undelivered[0], kind)

    def _cannot_start(self, error: Exception) -> LastWords:
        log.error("cannot start an engine process", child=self._child, error=first_line(error))
        if isinstance(error, EOFError | ConnectionError):
            why = "its forkserver has ended"
        elif isinstance(error, OSError) and error.strerror:
            why = error.strerror
        else:
            why = f"{type(error).__name__}, see the log"
        return LastWords(reason=f"cannot start an engine process: {why}")

    def _exit_reason(self, exit_code: int | None) -> str:
        if self._kill_requested and exit_code in {None, _FORKSERVER_GONE, -signal.SIGKILL}:
            return _KILLED
        if exit_code is None:
            return "ended in an unknown way"
        if exit_code == _FORKSERVER_GONE:
            return f"its forkserver was killed, {_NOT_BY_US}"
        if exit_code >= 0:
            return f"ended with exit code {exit_code}"
        if -exit_code == signal.SIGKILL:
            return f"{_KILLED}, {_NOT_BY_US}"
        known = -exit_code in set(signal.Signals)
        return f"killed by {signal.Signals(-exit_code).name if known else f'signal {-exit_code}'}"

    def _end(self, words: LastWords) -> None:
        """`words` are the process's own, or what can be said of a silent one."""
        exited = EngineExited(
            child=self._child,
            reason=words.reason,
            hopeless=words.hopeless,
            temporary=words.temporary,
            code=words.code,
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
