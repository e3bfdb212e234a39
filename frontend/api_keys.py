"""API keys: which there are, and whose. Keys stay in this module and in `key_file.py`; everywhere else go
their owner's name, or their fingerprint."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_KEY_CHARACTERS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Whoever calls with one of the keys that belong together."""

    name: str
    """From the key file; or the fingerprint of a key that has no name. The broker counts jobs by it."""
    active_jobs: int = 1
    """That may be queued or run at once."""
    queue_share: float = 1.0
    """Of the broker's queue, that this client may fill."""


Clients = Mapping[bytes, Client]
"""By the digest of each key."""


class KeyProblem(StrEnum):
    """Why a call is not let in."""

    MISSING = "API_KEY_MISSING"
    WRONG = "API_KEY_WRONG"
    SEVERAL = "API_KEY_AMBIGUOUS"


class ApiKeys:
    """The keys that are let in now."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def __len__(self) -> int:
        return len(self._clients)

    def replace(self, clients: Clients) -> bool:
        """From now on these; true if they are others. Calls that were let in go on."""
        is_change = clients != self._clients
        self._clients = clients
        return is_change

    def check(self, offered: Sequence[str]) -> Client | KeyProblem:
        """Judge what a call carries as its key; takes as long whatever is in it."""
        if not offered:
            return KeyProblem.MISSING
        if len(offered) > 1:
            return KeyProblem.SEVERAL
        candidate = digest(offered[0])
        matches = [client for known, client in self._clients.items() if hmac.compare_digest(known, candidate)]
        return matches[0] if matches else KeyProblem.WRONG


def parse_api_keys(text: str) -> tuple[str, ...]:
    """The keys in a comma-separated list; blanks around them do not count.

    Raises:
        ValueError: the list is not usable. The text says which entry, and never quotes it.
    """
    keys = tuple(entry.strip() for entry in text.split(","))
    if keys == ("",):
        raise ValueError("at least one key is needed")
    for position, key in enumerate(keys, start=1):
        problem = problem_with(key)
        if problem is not None:
            raise ValueError(f"entry {position}{problem}")
        if key in keys[: position - 1]:
            raise ValueError(f"entry {position} repeats entry {keys.index(key) + 1}")
    return keys


def problem_with(key: str) -> str | None:
    """Why this can be no key, to be said behind what names it; None if it can."""
    if not key:
        return " is empty"
    if not all("!" <= character <= "~" for character in key):
        return ": a key consists of printable ASCII characters without spaces"
    if len(key) > MAX_KEY_CHARACTERS:
        return f": a key has at most {MAX_KEY_CHARACTERS} characters"
    return None


def clients_of(keys: Iterable[str]) -> Clients:
    """A client of its own for each key."""
    return {digest(key): Client(name=fingerprint(key)) for key in keys}


def fingerprint(key: str) -> str:
    """A short name for a key, the same in every frontend. It does not tell the key."""
    return hashlib.blake2b(key.encode(), digest_size=8, person=b"imagegen-api-key").hexdigest()


def digest(key: str) -> bytes:
    """What keys are compared by: all of one length, so that a comparison does not tell how long they are."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
