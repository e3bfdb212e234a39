"""The log format of all components: one event a line, readable on a terminal and JSON elsewhere.

An event is a short lower-case phrase with its facts as fields. `job_id` is on every line that concerns a
job. Keys never appear, only their fingerprints; prompts only if `log_prompts` is set.
"""

import logging
import sys
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from proto.configuration import LogFormat, LogLevel
from proto.notes import Note

_log: Final = structlog.get_logger()


def short_id(identifier: bytes | None) -> str:
    """An identifier as people and log searches see it: hexadecimal, or `-` for none."""
    return "-" if identifier is None else bytes(identifier).hex()


def configure_logging(component: str, level: LogLevel, log_format: LogFormat) -> None:
    """Send this process's structlog events and the standard library's records to stderr."""
    readable = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    threshold = logging.getLevelNamesMapping()[level.upper()]

    def add_component(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {"component": component, **event}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable),
        add_component,
    ]
    renderers = _readable_renderers() if readable else _json_renderers()
    # Ours are written directly: the standard library's way takes three times as long.
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=_Output(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    # Of libraries, `debug` shows no more than `info` does.
    root.setLevel(max(threshold, logging.INFO))


def _readable_renderers() -> list[Processor]:
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]


def _json_renderers() -> list[Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


class _Output:
    """Where nobody reads any more, or the disk is full, the service goes on without a log."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        try:
            self._file.write(text)
        except (OSError, ValueError):  # the latter of a closed file
            return

    def flush(self) -> None:
        try:
            self._file.flush()
        except (OSError, ValueError):
            return


def write_note(note: Note) -> None:
    """What a core had to say, as an event of this process."""
    known = {key: value for key, value in note.fields.items() if value is not None}
    getattr(_log, note.level)(
        note.event,
        **{key: value.hex() if isinstance(value, bytes) else value for key, value in known.items()},
    )
