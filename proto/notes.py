"""What a pure core has to tell its operator: an action that the shell writes into the log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NoteLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Note:
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: NoteLevel = "info"
