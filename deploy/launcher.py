"""Runs the stack: executes what the supervisor decides, and brings it signals, exits and readiness."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final, assert_never

from deploy.component_process import ComponentProcess, OnLine
from deploy.readiness import ReadinessWatch, WorkerProgress
from deploy.stack import Stack
from deploy.supervision import (
    Action,
    AnnounceRestart,
    DeadlinePassed,
    Ending,
    Event,
    Exited,
    ExitReport,
    Finish,
    Kill,
    Outcome,
    StackReady,
    Start,
    StopRequested,
    Supervisor,
    Terminate,
)

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_NOT_STARTED: Final = 71
"""EX_OSERR of sysexits.h: the system refused to make the process."""

Tell = Callable[[str], None]
Use = Callable[[list[WorkerProgress]], Awaitable[None]]
"""Called once, with the workers, when the service is ready; the stack is stopped when it returns."""


class Launcher:
    """One run of one stack."""

    def __init__(self, stack: Stack, *, stop_limit_s: float, tell: Tell, on_line: OnLine) -> None:
        self._stack = stack
        self._tell = tell
        self._on_line = on_line
        self._components = {component.name: component for layer in stack.layers for component in layer}
        layers = [[component.name for component in layer] for layer in stack.layers]
        self._supervisor = Supervisor(layers, stop_limit_s=stop_limit_s)
        self._processes: dict[str, ComponentProcess] = {}
        self._waiters: set[asyncio.Task[None]] = set()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    async def run(self, use: Use) -> Outcome:
        """Start everything, `use` it, stop everything. No process is left, whichever way this ends."""
        signals = _heed(lambda: self._events.put_nowait(StopRequested()))
        user = asyncio.create_task(self._use_when_ready(use))
        user.add_done_callback(self._on_used)
        try:
            outcome = await self._supervise(user)
        finally:
            for number in signals:
                asyncio.get_running_loop().remove_signal_handler(number)
            for process in self._processes.values():
                process.kill()
            user.cancel()
            await asyncio.wait([user, *self._waiters])
        if not user.cancelled():
            user.result()
        return outcome

    async def _supervise(self, user: asyncio.Task[None]) -> Outcome:
        clock = asyncio.get_running_loop().time
        actions = self._supervisor.begin(clock())
        while True:
            for action in actions:
                if isinstance(action, Finish):
                    return action.outcome
                await self._execute(action)
            event = await self._next_event()
            if isinstance(event, StopRequested):
                self._tell_stop()
            actions = self._supervisor.handle(event, clock())
            if isinstance(self._supervisor.stack, Ending):
                user.cancel()

    async def _next_event(self) -> Event:
        try:
            async with asyncio.timeout_at(self._supervisor.next_deadline()):
                return await self._events.get()
        except TimeoutError:
            return DeadlinePassed()

    async def _execute(self, action: Action) -> None:
        match action:
            case Start(name=name):
                await self._start(name)
            case AnnounceRestart(name=name, report=report, delay_s=delay_s):
                self._tell(f"{name} ended ({describe(report.status)}), starting it again in {delay_s:g} s")
            case Terminate(name=name):
                if name in self._processes:
                    self._processes[name].terminate()
            case Kill(name=name):
                if name in self._processes:
                    self._processes[name].kill()
            case Finish():
                raise AssertionError("ends the loop")
            case _:
                assert_never(action)

    async def _start(self, name: str) -> None:
        try:
            process = await ComponentProcess.start(self._components[name], self._on_line)
        except OSError as error:
            report = ExitReport(status=EXIT_NOT_STARTED, last_lines=(str(error),))
            self._events.put_nowait(Exited(name=name, report=report))
            return
        self._processes[name] = process
        self._components[name] = self._components[name].started()
        waiter = asyncio.create_task(self._wait_for_exit(name, process))
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)

    async def _wait_for_exit(self, name: str, process: ComponentProcess) -> None:
        report = await process.wait()
        del self._processes[name]
        self._events.put_nowait(Exited(name=name, report=report))

    async def _use_when_ready(self, use: Use) -> None:
        watch = ReadinessWatch(
            url=self._stack.metrics_url,
            api_key=self._stack.api_keys[0],
            http_port=self._stack.http_port,
            workers=frozenset(worker.name for worker in self._stack.workers),
            frontend_pid=self._frontend_pid,
            tell=self._tell,
        )
        workers = await watch.until_ready()
        self._events.put_nowait(StackReady())
        await use(workers)

    def _on_used(self, user: asyncio.Task[None]) -> None:
        if not user.cancelled():
            self._events.put_nowait(StopRequested())

    def _frontend_pid(self) -> int | None:
        process = self._processes.get(self._stack.frontend.name)
        return None if process is None else process.pid

    def _tell_stop(self) -> None:
        if isinstance(self._supervisor.stack, Ending):
            self._tell("killing what is left")
        else:
            self._tell("stopping")


SAME_REQUEST_S: Final = 1.0
"""make passes a SIGTERM on to a process that has got it already: that is no second wish."""


def _heed(on_signal: Callable[[], None]) -> list[signal.Signals]:
    """Call `on_signal` on those stop signals that whoever started us does not want ignored (nohup)."""
    heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    loop = asyncio.get_running_loop()
    terminated_at = float("-inf")

    def on_terminate() -> None:
        nonlocal terminated_at
        if loop.time() - terminated_at >= SAME_REQUEST_S:
            terminated_at = loop.time()
            on_signal()

    for number in heeded:
        loop.add_signal_handler(number, on_terminate if number == signal.SIGTERM else on_signal)
    return heeded


def describe(status: int) -> str:
    """An exit status in words."""
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
