"""The tables of PROTOCOL.md, made of `messages.py` and `failures.py`: `python -m proto.field_tables`.

A test fails when they are not fresh.
"""

import ast
import inspect
from dataclasses import MISSING, Field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import msgspec

from proto import failures, messages
from proto.messages import MAX_FLOAT

DOCUMENT: Final = Path(__file__).with_name("PROTOCOL.md")
BEGIN: Final = "<!-- Made by proto/field_tables.py from messages.py and failures.py: not to be edited. -->"
END: Final = "<!-- End of what is made. -->"

_COMMANDS: Final = (
    messages.WorkerReport,
    messages.WorkerView,
    messages.FrontendReport,
    messages.FrontendView,
    messages.Submit,
    messages.Start,
    messages.Outcome,
    messages.Refuse,
    messages.Leave,
    messages.SnapshotRequest,
    messages.Snapshot,
)
_PARTS: Final = (
    messages.JobClaim,
    messages.ImageParameters,
    messages.TraceContext,
    messages.RunningExecution,
    messages.HeldOutcome,
    messages.ModelCard,
    messages.Readings,
    messages.GpuReading,
    messages.ImageMade,
    messages.JobFailed,
    messages.JobStatus,
    messages.WorkerRow,
    messages.Distribution,
)
_ENUMS: Final[tuple[type[StrEnum], ...]] = (
    messages.WorkerPhase,
    messages.JobPhase,
    messages.JobState,
    failures.RefusalReason,
)
_LARGE: Final = 20
_BOUNDS: Final = (
    ("minimum", "≥ {}"),
    ("exclusiveMinimum", "> {}"),
    ("maximum", "≤ {}"),
    ("exclusiveMaximum", "< {}"),
    ("minLength", "at least {} long"),
    ("maxLength", "at most {} long"),
    ("maxItems", "at most {}"),
)


def field_tables() -> str:
    """All tables as Markdown, with the comments that mark them."""
    parts = [*map(_table, (*_COMMANDS, *_PARTS)), *map(_values, _ENUMS), _failures()]
    return "\n\n".join([BEGIN, *parts, END])


def renewed(document: str) -> str:
    """The document with fresh tables."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + field_tables() + after


def _table(message: type[Any]) -> str:
    notes = _notes(message)
    types = msgspec.json.schema(message)["$defs"][message.__name__]["properties"]
    rows = []
    for field in fields(message):
        if field.name != "body":
            cells = (f"`{field.name}`", _kind(types[field.name]), _default(field), notes.get(field.name, ""))
            rows.append(f"| {' | '.join(cells)} |")
    head = ["| key | type | default | |", "|---|---|---|---|"]
    return "\n".join([f"**{message.__name__}**", "", *head, *rows])


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(option) for option in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    match schema.get("type"):
        case "null":
            return "nil"
        case "array":
            return f"list of {_kind(schema['items'])}{_bounds(schema)}"
        case "object":
            return f"map to {_kind(schema['additionalProperties'])}"
        case "string" if schema.get("contentEncoding") == "base64":
            return "id"
        case "number":
            return f"float{_bounds(schema)}"
        case other:
            return f"{other}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    told = [_bound(text, schema[name]) for name, text in _BOUNDS if schema.get(name, MAX_FLOAT) != MAX_FLOAT]
    return f", {', '.join(told)}" if told else ""


def _bound(text: str, number: float) -> str:
    """A large power of two as such, also where only what is below it can be demanded."""
    exponent = int(number).bit_length()
    if exponent > _LARGE and number == 2**exponent - 1:
        return f"< 2^{exponent}"
    if exponent > _LARGE and number == 2 ** (exponent - 1):
        return text.format(f"2^{exponent - 1}")
    return text.format(number)


def _default(field: "Field[Any]") -> str:
    if field.default_factory is not MISSING:
        return "empty"
    if field.default is MISSING:
        return "required"
    if field.default is None:
        return "nil"
    return str(field.default).lower() if field.default not in ("", ()) else "empty"


def _notes(described: type[Any]) -> dict[str, str]:
    """What stands below each field or member in the source."""
    body = ast.parse(inspect.getsource(described)).body[0]
    found: dict[str, str] = {}
    name = ""
    for statement in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name = statement.target.id
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name = statement.targets[0].id
        elif name and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            found[name] = " ".join(str(statement.value.value).split())
    return found


def _values(enum: type[StrEnum]) -> str:
    notes = _notes(enum)
    rows = [f"| `{member.value}` | {notes[member.name]} |" for member in enum]
    return "\n".join([f"**{enum.__name__}**, a string", "", "| value | |", "|---|---|", *rows])


def _failures() -> str:
    """With what a broker and a worker make of each."""
    notes = _notes(failures.FailureCode)
    rows = [
        f"| `{code.value}` | {notes[code.name]} | {_yes(code in failures.RETRYABLE_FAILURES)}"
        f" | {_yes(code in failures.ENGINE_DEATHS)} | {_yes(code in failures.ENGINE_REPLACED)} |"
        for code in failures.FailureCode
    ]
    head = ["| value | | retryable | adds to `crashes` | ends the engine process |", "|---|---|---|---|---|"]
    return "\n".join(["**FailureCode**, a string", "", *head, *rows])


def _yes(holds: bool) -> str:
    return "yes" if holds else ""


if __name__ == "__main__":
    DOCUMENT.write_text(renewed(DOCUMENT.read_text()))
