"""The file with the API keys, TOML: a table for each client, which may have several keys.

[clients.alice]
sha256 = ["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"]
active_jobs = 4
queue_share = 0.25
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from frontend.api_keys import Client, Clients, digest, problem_with
from proto.messages import MAX_KEY_JOBS
from proto.operator_files import FileUnusable, read_file

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_SHA256: Final = re.compile(r"[0-9A-Fa-f]{64}", re.ASCII)
_TOML_PLACE: Final = re.compile(r"\(at ([a-z0-9, ]+)\)$")


def _usable_key(key: str) -> str:
    problem = problem_with(key)
    if problem is not None:
        raise ValueError(problem.removeprefix(":").strip())
    return key


def _usable_digest(text: str) -> bytes:
    if not _SHA256.fullmatch(text):
        raise ValueError("64 hexadecimal digits are expected, as `printf %s KEY | sha256sum` prints them")
    return bytes.fromhex(text)


class _Entry(BaseModel):
    """A client. Two keys of one client are what it has while it changes from the one to the other."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[Annotated[str, AfterValidator(_usable_key)]] = []
    sha256: list[Annotated[str, AfterValidator(_usable_digest)]] = []
    active_jobs: int = Field(1, ge=1, le=MAX_KEY_JOBS)
    queue_share: float = Field(0.5, gt=0, le=1)

    @property
    def digests(self) -> list[bytes]:
        return [*map(digest, self.keys), *self.sha256]  # type: ignore[list-item]  # made bytes by its validator


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    clients: dict[str, _Entry] = {}


def read_clients(path: Path) -> Clients:
    """Whom the file lets in. Raises `FileUnusable`."""
    file = read_file(path)
    try:
        document = _Document.model_validate(_parsed(file.content))
    except ValueError as error:
        raise FileUnusable(f"{path}: {_explain(error)}") from None
    if any(entry.keys for entry in document.clients.values()):
        file.require_secrecy("holds keys in clear")
    try:
        return _clients(document)
    except ValueError as error:
        raise FileUnusable(f"{path}: {error}") from None


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ValueError("is no text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))  # The rest of the text may quote what is there.
        raise ValueError(f"{place[1] if place else 'somewhere'}: not valid TOML") from None
    except RecursionError:
        raise ValueError("nested far too deeply for a list of keys") from None


def _explain(error: ValueError) -> str:
    """The first thing that is wrong. What the file has is named by its place, and never quoted."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = [str(part + 1) if isinstance(part, int) else part for part in first["loc"]]
    if len(place) > 1 and not _NAME.fullmatch(place[1]):
        return _BAD_NAME
    if len(place) < 3:
        return f"has something beside tables [clients.NAME]; {_EXPECTED}"
    if first["type"] == "extra_forbidden":
        return f"[clients.{place[1]}] has an unknown entry; {_EXPECTED}"
    text = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(place)}: {text}"


_EXPECTED: Final = f"expected are tables [clients.NAME] with {', '.join(_Entry.model_fields)}"
_BAD_NAME: Final = "a client's name consists of 1 to 64 letters, digits, dots, hyphens and underscores"


def _clients(document: _Document) -> Clients:
    if not document.clients:
        raise ValueError(f"names no client; {_EXPECTED}")
    clients: dict[bytes, Client] = {}
    for name, entry in document.clients.items():
        if not _NAME.fullmatch(name):
            raise ValueError(_BAD_NAME)
        if not entry.digests:
            raise ValueError(f"[clients.{name}] has no key: neither keys nor sha256")
        client = Client(name=name, active_jobs=entry.active_jobs, queue_share=entry.queue_share)
        for each in entry.digests:
            if each in clients:
                raise ValueError(
                    f"[clients.{name}] has a key that [clients.{clients[each].name}] has already"
                )
            clients[each] = client
    return clients
