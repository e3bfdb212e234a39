"""What a pure core has to tell its operator: an action that the shell writes into the log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog

NoteLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Note:
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: NoteLevel = "info"


def write_note(note: Note) -> None:
    log = structlog.get_logger()
    write = {"debug": log.debug, "info": log.info, "warning": log.warning, "error": log.error}[note.level]
    write(
        note.event,
        **{key: value.hex() if isinstance(value, bytes) else value for key, value in note.fields.items()},
    )
