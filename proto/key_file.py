"""Files with CURVE keys: one with this component's own pair, and lists of others' public keys.

The pair is kept in the certificate format that pyzmq and czmq write (ZPL), in a file that only its owner
may read. A list has one entry a line; empty lines and those that begin with `#` are passed over.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import zmq
import zmq.auth

from proto.operator_files import FileUnusable, checked_status, read_file

PUBLIC_KEY: Final = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)
"""32 bytes in Z85 (RFC 32)."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: str
    secret: str = field(repr=False)


def read_key_pair(path: Path) -> KeyPair:
    """A component's own keys. Raises `FileUnusable`."""
    _require_private(path)
    try:
        public, secret = zmq.auth.load_certificate(path)
    except PermissionError as error:
        raise FileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError, IndexError):
        raise FileUnusable(f"{path}: is no key file; flux-keys make NAME makes one") from None
    if secret is None:
        raise FileUnusable(f"{path}: has no secret-key: name the file that ends in .key_secret")
    try:
        is_pair = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        is_pair = False
    if not is_pair:
        raise FileUnusable(f"{path}: public-key and secret-key do not belong together")
    return KeyPair(public=public.decode(), secret=secret.decode())


def read_entries(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Of a list of public keys: for each entry where it stands, `FILE: line N`, and its words.

    Raises `FileUnusable`.
    """
    try:
        text = read_file(path).content.decode()
    except UnicodeDecodeError:
        raise FileUnusable(f"{path}: is no text in UTF-8") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}: line {number}", line.split()


def checked_public_key(word: str, where: str) -> str:
    """`word`. Raises `FileUnusable` if it is no public key; a secret one cannot be told apart."""
    if not PUBLIC_KEY.fullmatch(word):
        raise FileUnusable(f"{where}: no public key, which has 40 characters, as flux-keys show prints it")
    return word


def _require_private(path: Path) -> None:
    """As ssh does with its keys; what systemd hands over as a credential may be readable for its group."""
    status = checked_status(path)
    if status.st_uid not in {0, os.geteuid()}:
        raise FileUnusable(f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()} or root")
    mode = stat.S_IMODE(status.st_mode)
    allowed = 0o740 if status.st_uid == 0 and _is_systemd_credential(path) else 0o700
    if mode & ~allowed:
        raise FileUnusable(f"{path}: others may read or change it (mode {mode:04o}): chmod 0600")


def _is_systemd_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.resolve().parent == Path(folder).resolve()
