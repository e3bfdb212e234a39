"""One component as a running process: its output line by line, its signals, its end."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from deploy import tied
from deploy.stack import Component
from deploy.supervision import ExitReport

LAST_LINES: Final = 5
_CHUNK_BYTES: Final = 65536
_LINE_MAX_BYTES: Final = 65536
_OUTPUT_AFTER_EXIT_S: Final = 1.0
"""A grandchild may still hold the pipe when the process is gone."""

OnLine = Callable[[str, str], None]
"""Called with the component's name and a line that it wrote, without the line's end."""


class ComponentProcess:
    """Started in a session of its own, so that a terminal's Ctrl-C reaches the launcher alone."""

    def __init__(self, component: Component, process: asyncio.subprocess.Process, on_line: OnLine) -> None:
        self._component = component
        self._process = process
        self._on_line = on_line
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._output = asyncio.create_task(self._read_output())

    @classmethod
    async def start(cls, component: Component, on_line: OnLine) -> Self:
        process = await asyncio.create_subprocess_exec(
            component.command[0],
            *("-I", "-S", str(Path(tied.__file__)), str(os.getpid())),
            *component.command,
            env={**os.environ, **component.environment, "PYTHONUNBUFFERED": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        return cls(component, process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> ExitReport:
        """Until it has ended and all that it wrote was passed on."""
        status = await self._process.wait()
        _, unread = await asyncio.wait([self._output], timeout=_OUTPUT_AFTER_EXIT_S)
        if unread:
            self._kill_leftovers()
            self._output.cancel()
            await asyncio.wait([self._output])
        return ExitReport(status=status, last_lines=tuple(self._last_lines))

    def _kill_leftovers(self) -> None:
        """Whoever holds the pipe is a child that the process left behind, in the group that it led."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def _read_output(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._pass_on(line)
            if len(rest) > _LINE_MAX_BYTES:
                self._pass_on(rest)
                rest = b""
        if rest:
            self._pass_on(rest)

    def _pass_on(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self._last_lines.append(text)
            self._on_line(self._component.name, text)
