"""Frames <-> messages, with the limits of PROTOCOL.md §2. The only user of msgpack.

msgpack holds a header to the limits of its shape, msgspec to the types and ranges of `messages.py`. Decoding
trusts nothing: whatever bytes arrive, the result is a valid message or a `ProtocolViolation`.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final, NoReturn

import msgpack
import msgspec

from proto import messages
from proto.messages import (
    MAX_IMAGE_BYTES,
    MAX_LISTED,
    MAX_PROMPT_BYTES,
    MAX_SNAPSHOT_BYTES,
    Body,
    Message,
)

VERSION: Final = 1
MAX_HEADER_BYTES: Final = 1024 * 1024
MAX_KEYS: Final = 64
SLACK_BYTES: Final = 64 * 1024

_MAGIC: Final = b"FLX1"
_PREFIX: Final = struct.Struct("!4sBBH")


class ViolationKind(StrEnum):
    FRAMING = "framing"
    VERSION = "version"
    COMMAND = "command"
    SIZE = "size"
    HEADER = "header"
    BODY = "body"


class ProtocolViolation(Exception):
    """A peer sent something that PROTOCOL.md does not allow. The text is for our log, not for the peer."""

    def __init__(self, kind: ViolationKind, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class NotForThisRole(ProtocolViolation):
    """A valid message that its receiver's role does not take (PROTOCOL.md §2)."""

    def __init__(self, message: Message, role: str) -> None:
        super().__init__(ViolationKind.COMMAND, f"a {type(message).__name__} is not {role}")


@dataclass(frozen=True, slots=True)
class _Command:
    code: int
    message: type[Message]
    max_body_bytes: int | None
    """None for a message without body."""
    max_header_bytes: int = MAX_HEADER_BYTES


_REFUSE_CODE: Final = 8
"""The same in every version, so that both sides can say why they do not understand each other."""
_COMMANDS: Final = (
    _Command(1, messages.WorkerReport, None),
    _Command(2, messages.WorkerView, None),
    _Command(3, messages.FrontendReport, None),
    _Command(4, messages.FrontendView, None),
    _Command(5, messages.Submit, MAX_PROMPT_BYTES),
    _Command(6, messages.Start, MAX_PROMPT_BYTES),
    _Command(7, messages.Outcome, MAX_IMAGE_BYTES),
    _Command(_REFUSE_CODE, messages.Refuse, None),
    _Command(9, messages.Leave, None),
    _Command(10, messages.SnapshotRequest, None),
    _Command(11, messages.Snapshot, None, MAX_SNAPSHOT_BYTES),
)
_BY_CODE: Final = {command.code: command for command in _COMMANDS}
_BY_MESSAGE: Final = {command.message: command for command in _COMMANDS}
_HEADER_KEYS: Final = {
    message: tuple(field.name for field in fields(message) if field.name != "body") for message in _BY_MESSAGE
}
_REPORT_PREFIXES: Final = frozenset(
    _PREFIX.pack(_MAGIC, VERSION, _BY_MESSAGE[report].code, 0)
    for report in (messages.WorkerReport, messages.FrontendReport)
)
_ENCODER: Final = msgspec.msgpack.Encoder()


def encode(message: Message) -> list[Body]:
    """The frames of a message: prefix, header, and the body where there is one.

    Raises:
        ValueError: the message exceeds a limit; an error of ours, never of a peer.
    """
    command = _BY_MESSAGE[type(message)]
    body: Any = getattr(message, "body", None)
    # What is nil may be missing as well.
    values = {
        key: value for key in _HEADER_KEYS[command.message] if (value := getattr(message, key)) is not None
    }
    header = _ENCODER.encode(values)
    if len(header) > command.max_header_bytes:
        raise ValueError(
            f"{command.message.__name__}: a header of {len(header)} bytes, at most {command.max_header_bytes}"
        )
    frames: list[Body] = [_PREFIX.pack(_MAGIC, VERSION, command.code, 0), header]
    if command.max_body_bytes is not None:
        if len(body) > command.max_body_bytes:
            raise ValueError(
                f"{command.message.__name__}: a body of {len(body)} bytes, at most {command.max_body_bytes}"
            )
        frames.append(body)
    return frames


def decode(frames: Sequence[Body]) -> Message:
    """The message in these frames (without routing identity).

    Raises:
        ProtocolViolation: and nothing else, whatever the frames hold.
    """
    if not 2 <= len(frames) <= 3:
        raise ProtocolViolation(ViolationKind.FRAMING, f"{len(frames)} frames, expected 2 or 3")
    command = _command_of(bytes(frames[0][: _PREFIX.size + 1]))
    header = _header_of(frames[1], command.max_header_bytes)
    body = _body_of(command, frames[2:])
    if body is not None:
        header["body"] = body
    message = _message_of(command.message, header)
    _check_body(message)
    return message


def is_report(prefix: bytes) -> bool:
    """Whether this is the first frame of a report, which says all that earlier ones of its peer have said."""
    return prefix in _REPORT_PREFIXES


def _command_of(prefix: bytes) -> _Command:
    if len(prefix) != _PREFIX.size:
        raise ProtocolViolation(ViolationKind.FRAMING, f"a prefix that is not {_PREFIX.size} bytes long")
    magic, version, code, reserved = _PREFIX.unpack(prefix)
    if magic != _MAGIC or reserved != 0:
        raise ProtocolViolation(ViolationKind.FRAMING, "a prefix of something else")
    if version != VERSION and code != _REFUSE_CODE:
        raise ProtocolViolation(ViolationKind.VERSION, f"version {version}, expected {VERSION}")
    command = _BY_CODE.get(code)
    if command is None:
        raise ProtocolViolation(ViolationKind.COMMAND, f"unknown command {code}")
    return command


def _header_of(frame: Body, max_bytes: int) -> dict[str, Any]:
    if len(frame) > max_bytes:
        raise ProtocolViolation(ViolationKind.SIZE, f"a header of {len(frame)} bytes")
    try:
        header = msgpack.unpackb(
            frame,
            max_array_len=MAX_LISTED,
            max_map_len=MAX_KEYS,
            max_ext_len=0,
            ext_hook=_no_extension,
            strict_map_key=True,
        )
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen kinds, undocumented ones among them
        raise ProtocolViolation(
            ViolationKind.HEADER, f"not msgpack within limits: {type(error).__name__}"
        ) from None
    if not isinstance(header, dict):
        raise ProtocolViolation(ViolationKind.HEADER, "not a map")
    return header


def _no_extension(code: int, _data: bytes) -> NoReturn:
    """For those of no length at all; longer ones exceed `max_ext_len`."""
    raise ValueError(f"an extension of type {code}")


def _message_of(kind: type[Message], header: dict[str, Any]) -> Message:
    try:
        # Without `bytes` among these a string would be taken for base64.
        return msgspec.convert(header, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        text, found, place = str(error).rpartition(" - at `$")
        if not found:
            text, place = place, ""
        # Of a value that no enumeration has, the text quotes as much as there is.
        told = text.partition(" '")[0]
        raise ProtocolViolation(ViolationKind.HEADER, f"{kind.__name__}{place.rstrip('`')}: {told}") from None


def _body_of(command: _Command, rest: Sequence[Body]) -> Body | None:
    if command.max_body_bytes is None:
        if rest:
            raise ProtocolViolation(ViolationKind.FRAMING, f"{command.message.__name__} with a body")
        return None
    if not rest:
        raise ProtocolViolation(ViolationKind.FRAMING, f"{command.message.__name__} without a body")
    if len(rest[0]) > command.max_body_bytes:
        raise ProtocolViolation(
            ViolationKind.SIZE, f"{command.message.__name__} with {len(rest[0])} bytes of body"
        )
    return rest[0]


def _check_body(message: Message) -> None:
    match message:
        case messages.Submit(body=body) | messages.Start(body=body):
            try:
                str(body, "utf-8")
            except UnicodeDecodeError:
                raise ProtocolViolation(ViolationKind.BODY, "a prompt that is not UTF-8") from None
        case messages.Outcome(image=image, failure=failure, body=body):
            if (image is None) == (failure is None):
                raise ProtocolViolation(ViolationKind.HEADER, "an Outcome needs either an image or a failure")
            if (image is None) != (len(body) == 0):
                raise ProtocolViolation(ViolationKind.BODY, "an image has a body, a failure has none")
        case _:
            pass
