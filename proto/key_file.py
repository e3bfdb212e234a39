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

PUBLIC_KEY: Final = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)
"""32 bytes in Z85 (RFC 32)."""
_FILE_MAX_BYTES: Final = 1024 * 1024
"""Far above any list of keys: whoever names a device or a model by mistake is to hear so."""


class KeyFileUnusable(Exception):
    """The text names the file, and the line where it can, and says what was expected. It holds no secret."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    public: str
    secret: str = field(repr=False)


def read_key_pair(path: Path) -> KeyPair:
    """A component's own keys. Raises `KeyFileUnusable`."""
    _require_private(path)
    try:
        public, secret = zmq.auth.load_certificate(path)
    except PermissionError as error:
        raise KeyFileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    except (OSError, ValueError, IndexError):
        raise KeyFileUnusable(f"{path}: is no key file; flux-keys make NAME makes one") from None
    if secret is None:
        raise KeyFileUnusable(f"{path}: has no secret-key: name the file that ends in .key_secret")
    try:
        is_pair = zmq.curve_public(secret) == public
    except (ValueError, zmq.ZMQError):
        is_pair = False
    if not is_pair:
        raise KeyFileUnusable(f"{path}: public-key and secret-key do not belong together")
    return KeyPair(public=public.decode(), secret=secret.decode())


def read_entries(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Of a list of public keys: for each entry where it stands, `FILE: line N`, and its words.

    Raises `KeyFileUnusable`.
    """
    status = _status(path)
    if status.st_mode & stat.S_IWOTH:
        raise KeyFileUnusable(f"{path}: everybody may write it: chmod o-w")
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise KeyFileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileUnusable(f"{path}: is no text in UTF-8") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield f"{path}: line {number}", line.split()


def checked_public_key(word: str, where: str) -> str:
    """`word`. Raises `KeyFileUnusable` if it is no public key; a secret one cannot be told apart."""
    if not PUBLIC_KEY.fullmatch(word):
        raise KeyFileUnusable(f"{where}: no public key, which has 40 characters, as flux-keys show prints it")
    return word


def _require_private(path: Path) -> None:
    """As ssh does with its keys; what systemd hands over as a credential may be readable for its group."""
    status = _status(path)
    if status.st_uid not in {0, os.geteuid()}:
        raise KeyFileUnusable(f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()} or root")
    mode = stat.S_IMODE(status.st_mode)
    allowed = 0o740 if status.st_uid == 0 and _is_systemd_credential(path) else 0o700
    if mode & ~allowed:
        raise KeyFileUnusable(f"{path}: others may read or change it (mode {mode:04o}): chmod 0600")


def _is_systemd_credential(path: Path) -> bool:
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.resolve().parent == Path(folder).resolve()


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise KeyFileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileUnusable(f"{path}: is no file")
    if status.st_size > _FILE_MAX_BYTES:
        raise KeyFileUnusable(f"{path}: is larger than {_FILE_MAX_BYTES} bytes, and no key file")
    return status
