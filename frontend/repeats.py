"""What a call says in its metadata about repeats of it. The idempotency key itself stays in this module.

It may be a secret of the client: everywhere else go only what is derived from it, and what is wrong with it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from frontend.validation import FieldViolation
from proto.messages import ID_SIZE_BYTES

IDEMPOTENCY_KEY_METADATA: Final = "idempotency-key"
ON_DISCONNECT_METADATA: Final = "on-disconnect"
KEY_MAX_CHARACTERS: Final = 128
SEED_BYTES: Final = 8

_KEY_ALLOWED: Final = f"1 to {KEY_MAX_CHARACTERS} printable ASCII characters"
_SHOWN_CHARACTERS: Final = 32


class OnDisconnect(StrEnum):
    """What becomes of a job when nobody waits for it any more."""

    CANCEL = "cancel"
    DETACH = "detach"


_ON_DISCONNECT_ALLOWED: Final = " or ".join(f"'{wish}'" for wish in OnDisconnect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """Which calls are repeats of one, and whether they find its job when nobody waited for it meanwhile."""

    idempotency_hash: bytes | None = None
    """16 bytes, the same for every repeat of the call and for no other. None: it has no repeats."""
    seed: int | None = None
    """64 bits, for a call that names none itself: a repeat that runs again draws the same image."""
    detach: bool = False
    """The job goes on without a waiter."""


def read_repeats(
    metadata: Iterable[tuple[str, str | bytes]], key_fingerprint: str
) -> Repeats | tuple[FieldViolation, ...]:
    """What the metadata of a call says, or everything that is wrong with it.

    Args:
        key_fingerprint: of the API key, within which an idempotency key counts.
    """
    entries = list(metadata)
    keys, wishes = _values(entries, IDEMPOTENCY_KEY_METADATA), _values(entries, ON_DISCONNECT_METADATA)
    checks = (_key_problem(keys), _on_disconnect_problem(wishes, has_key=bool(keys)))
    violations = tuple(violation for violation in checks if violation is not None)
    if violations:
        return violations
    if not keys:
        return Repeats()
    return Repeats(
        idempotency_hash=_derived(ID_SIZE_BYTES, b"idempotency-hash", key_fingerprint, keys[0]),
        seed=int.from_bytes(_derived(SEED_BYTES, b"idempotency-seed", key_fingerprint, keys[0])),
        detach=wishes == [OnDisconnect.DETACH],
    )


def _values(metadata: Iterable[tuple[str, str | bytes]], wanted: str) -> list[str]:
    return [str(value) for name, value in metadata if name == wanted]


def _derived(size_bytes: int, purpose: bytes, key_fingerprint: str, key: str) -> bytes:
    # Neither of the two can contain the zero byte between them.
    material = key_fingerprint.encode() + b"\0" + key.encode()
    return hashlib.blake2b(material, digest_size=size_bytes, person=purpose).digest()


def _key_problem(keys: Sequence[str]) -> FieldViolation | None:
    if not keys:
        return None
    if len(keys) > 1:
        return _several(IDEMPOTENCY_KEY_METADATA, len(keys), f"one of {_KEY_ALLOWED}")
    (key,) = keys
    problem = None
    if not 1 <= len(key) <= KEY_MAX_CHARACTERS:
        problem = "is out of range"
    elif not all(" " <= character <= "~" for character in key):
        problem = "is not printable ASCII"
    if problem is None:
        return None
    return FieldViolation(
        field=field_name(IDEMPOTENCY_KEY_METADATA),
        value=f"a text of {len(key)} characters",
        problem=problem,
        allowed=_KEY_ALLOWED,
    )


def _on_disconnect_problem(wishes: Sequence[str], *, has_key: bool) -> FieldViolation | None:
    match wishes:
        case [] | [OnDisconnect.CANCEL]:
            return None
        case [OnDisconnect.DETACH]:
            return None if has_key else _detached_from_everybody()
        case [wish]:
            shown = f"'{wish}'" if len(wish) <= _SHOWN_CHARACTERS else f"a text of {len(wish)} characters"
            return FieldViolation(
                field=field_name(ON_DISCONNECT_METADATA),
                value=shown,
                problem="is unknown",
                allowed=_ON_DISCONNECT_ALLOWED,
            )
        case _:
            return _several(ON_DISCONNECT_METADATA, len(wishes), f"one of {_ON_DISCONNECT_ALLOWED}")


def _detached_from_everybody() -> FieldViolation:
    # Its image would be drawn for nobody: only a repeat can ask for it.
    return FieldViolation(
        field=field_name(ON_DISCONNECT_METADATA),
        value=f"'{OnDisconnect.DETACH}'",
        problem=f"needs a metadata entry '{IDEMPOTENCY_KEY_METADATA}'",
        allowed=f"'{OnDisconnect.CANCEL}' without one",
    )


def _several(name: str, count: int, allowed: str) -> FieldViolation:
    return FieldViolation(
        field=field_name(name), value=f"{count} entries", problem="are too many", allowed=allowed
    )


def field_name(metadata_name: str) -> str:
    """How a metadata entry is called among the fields of a request."""
    return f"metadata '{metadata_name}'"
