"""Who may connect: lines `worker NAME PUBLIC_KEY` and `frontend NAME PUBLIC_KEY`.

A name may have several keys, while one takes another's place; a key may stand in both roles, each once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proto.key_file import checked_public_key, read_entries
from proto.operator_files import FileUnusable

ROLES: Final = ("worker", "frontend")


@dataclass(frozen=True, slots=True)
class AuthorizedKeys:
    names: Mapping[tuple[str, str], str]
    """Names by role and public key."""

    def name_of(self, role: str, public_key: str) -> str | None:
        """None: not in this role."""
        return self.names.get((role, public_key))

    def other_role_of(self, role: str, public_key: str) -> tuple[str, str] | None:
        """Role and name under which this key is listed beside `role`, for a helpful word."""
        for other in ROLES:
            if other != role and (name := self.name_of(other, public_key)) is not None:
                return other, name
        return None

    def count(self, role: str) -> int:
        return sum(each == role for each, _key in self.names)


def read_authorized_keys(path: Path) -> AuthorizedKeys:
    """Raises `FileUnusable`."""
    names: dict[tuple[str, str], str] = {}
    for line, words in read_entries(path):
        if len(words) != 3:
            raise FileUnusable(f"{line}: {len(words)} words; expected: ROLE NAME PUBLIC_KEY")
        role, name, word = words
        if role not in ROLES:
            raise FileUnusable(f"{line}: {role[:40]!r} is no role; expected: worker or frontend")
        key = checked_public_key(word, line)
        if (role, key) in names:
            raise FileUnusable(f"{line}: this key is listed already, as {role} {names[role, key]}")
        names[role, key] = name
    return AuthorizedKeys(names)
