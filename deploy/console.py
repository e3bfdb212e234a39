"""What the launcher says: its own words on stdout, the components' logs on stderr."""

import contextlib
import sys
from typing import TextIO, assert_never

from deploy.launcher import describe
from deploy.settings import LauncherSettings
from deploy.supervision import GaveUp, Outcome, Stopped
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

EXIT_FAILED = 1


class Console:
    """For people the component's name stands before each of its lines; JSON lines carry it themselves."""

    def __init__(self, program: str, *, readable_logs: bool) -> None:
        self._program = program
        self._readable_logs = readable_logs

    def tell(self, text: str) -> None:
        _write(sys.stdout, f"{self._program}: {text}")

    def log_line(self, component: str, line: str) -> None:
        _write(sys.stderr, f"{component:9} | {line}" if self._readable_logs else line)

    def report(self, outcome: Outcome) -> int:
        """Say why the stack ended, if not because it was asked to; returns the exit status for that."""
        match outcome:
            case Stopped():
                return 0
            case GaveUp(name=name, report=report):
                lines = [f"{self._program}: {name} cannot run ({describe(report.status)}):"]
                _write(sys.stderr, "\n  ".join([*lines, *(report.last_lines or ("it wrote nothing",))]))
                known = report.status in {EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START}
                return report.status if known else EXIT_FAILED
            case _:
                assert_never(outcome)


def with_readable_logs(settings: LauncherSettings) -> LauncherSettings:
    """The components write into a pipe: what `auto` means is for the launcher to say."""
    if settings.log_format == "auto" and sys.stderr.isatty():
        return settings.model_copy(update={"log_format": "console"})
    return settings


def _write(stream: TextIO, text: str) -> None:
    # A closed terminal must not keep us from stopping what we started.
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)
