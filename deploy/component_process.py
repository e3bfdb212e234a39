"""One component as a running process: its output line by line, its signals, its end."""

import asyncio
import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, Self

from deploy import tied
from deploy.stack import SECRETS, Component
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

    def __init__(self, name: str, process: asyncio.subprocess.Process, output: "OutputPipe") -> None:
        self._process = process
        self._output = output
        self._reading = asyncio.create_task(output.read_lines(name))

    @classmethod
    async def start(cls, component: Component, on_line: OnLine) -> Self:
        """Raises OSError: the system refuses to make a process or a pipe."""
        output, write_end = await OutputPipe.open(on_line)
        try:
            process = await asyncio.create_subprocess_exec(
                component.command[0],
                *("-I", "-S", str(Path(tied.__file__)), str(os.getpid())),
                *component.command,
                env=_environment(component),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
            )
        except OSError:
            output.close()
            raise
        finally:
            os.close(write_end)
        return cls(component.name, process, output)

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
        if not await self._output_ends():
            self._kill_leftovers()
            await self._output_ends()
        self._output.close()
        await self._reading
        return ExitReport(status=status, last_lines=tuple(self._output.last_lines))

    async def _output_ends(self) -> bool:
        ended, _ = await asyncio.wait([self._reading], timeout=_OUTPUT_AFTER_EXIT_S)
        return bool(ended)

    def _kill_leftovers(self) -> None:
        """Whoever holds the pipe is a child that the process left behind, in the group that it led."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _environment(component: Component) -> dict[str, str]:
    """The launcher's own, but for the secrets, which the plan gives to those who need them."""
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in SECRETS}
    return {**inherited, **component.environment, **component.first_environment, "PYTHONUNBUFFERED": "1"}


class OutputPipe:
    """The reading end of a pipe of our own.

    With asyncio's, waiting for a process is also waiting for its grandchildren to let go of the pipe.
    """

    def __init__(
        self, stream: asyncio.StreamReader, transport: asyncio.ReadTransport, on_line: OnLine
    ) -> None:
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._stream = stream
        self._transport = transport
        self._on_line = on_line

    @classmethod
    async def open(cls, on_line: OnLine) -> tuple[Self, int]:
        """The pipe, and the file descriptor of its other end."""
        stream = asyncio.StreamReader()
        read_end, write_end = os.pipe()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(read_end, "rb", buffering=0)
        )
        return cls(stream, transport, on_line), write_end

    def close(self) -> None:
        self._transport.close()

    async def read_lines(self, name: str) -> None:
        """Until the end of the output; an overlong line is passed on in pieces."""
        rest = b""
        while chunk := await self._stream.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LINE_MAX_BYTES:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._pass_on(name, line)
        self._pass_on(name, rest)

    def _pass_on(self, name: str, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self.last_lines.append(text)
            self._on_line(name, text)
