"""What a pure core has to tell its operator: an action that the shell writes into the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

NoteLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Note:
    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: NoteLevel = "info"

    def with_endpoint(self, endpoints: Sequence[str]) -> "Note":
        """A core knows a broker by its place among the endpoints, and people by the endpoint."""
        match self.fields:
            case {"broker": int(place), **others}:
                return replace(self, fields={"endpoint": endpoints[place], **others})
            case _:
                return self
