"""What goes wrong between us and the Hub, as one line that says what to do, and an exit status."""

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub.errors import (
    DeviceCodeError,
    GatedRepoError,
    HfHubHTTPError,
    OIDCError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from gpu_worker.engines.error_text import first_line
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START

RESUMES: Final = "run it again, it goes on where it was"
LOG_IN: Final = "set HF_TOKEN, or log in with `hf auth login`"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READING: Final = "a token that may read"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """One revision of one repository, and who asks for it."""

    endpoint: str
    repository: str
    revision: str
    token: str | None = field(repr=False)


class PrefetchFailed(Exception):
    """The text says what happened and what to do."""

    def __init__(self, text: str, status: int = EXIT_BAD_CONFIGURATION) -> None:
        super().__init__(text)
        self.status = status


def explained(error: Exception, source: HubSource, folder: Path) -> PrefetchFailed | None:
    """None for what nobody expects: that is our own mistake."""
    match error:
        case HfHubHTTPError():
            return _refused(error, source)
        case httpx2.HTTPError() | httpx2.InvalidURL():
            return PrefetchFailed(
                f"no connection to {source.endpoint}, or it was cut off ({first_line(error)}); {RESUMES}",
                EXIT_CANNOT_START,
            )
        case OIDCError() | DeviceCodeError():
            return PrefetchFailed(f"the login for the Hub failed ({first_line(error)}): {LOG_IN}")
        case OSError():
            return _local(error, source, folder)
        case _:
            return None


def _refused(error: HfHubHTTPError, source: HubSource) -> PrefetchFailed:
    """By the Hub itself. Gated repositories and revisions are kinds of missing ones to the library."""
    status = error.response.status_code
    page = f"{source.endpoint}/{source.repository}"
    match error:
        case GatedRepoError():
            return PrefetchFailed(_gated(error, source, page))
        case RevisionNotFoundError():
            return PrefetchFailed(
                f"{source.repository} has no revision {source.revision!r}; expected is a commit, branch or"
                f" tag of {page}/commits/main"
            )
        case _ if status == httpx2.codes.UNAUTHORIZED and source.token is not None and not _missing(error):
            return PrefetchFailed(f"{source.endpoint} does not accept the token: {LOG_IN}, with {_READING}")
        case _ if isinstance(error, RepositoryNotFoundError) or status == httpx2.codes.UNAUTHORIZED:
            why = "this token may not see it" if source.token is not None else f"it needs a token: {LOG_IN}"
            return PrefetchFailed(f"{page}: there is no such repository, or {why}")
        case _ if status == httpx2.codes.FORBIDDEN:
            return PrefetchFailed(
                f"{page}: the token is not allowed to read it; it needs {_READING} public gated repositories"
            )
        case _:
            return PrefetchFailed(
                f"{source.endpoint} answered with status {status} to a request for {source.repository};"
                f" {RESUMES}",
                EXIT_CANNOT_START,
            )


def _missing(error: HfHubHTTPError) -> bool:
    return bool(error.response.headers.get("X-Error-Code") == "RepoNotFound")


def _gated(error: HfHubHTTPError, source: HubSource, page: str) -> str:
    if source.token is None:
        return (
            f"{source.repository} is gated, and there is no token: accept its licence at {page},"
            f" then {LOG_IN}"
        )
    said = " ".join((error.server_message or "").split())[:200]
    return (
        f"{source.repository} is gated, and this token has no access: accept its licence at {page} as the"
        " token's owner; a fine-grained token must also be allowed to read public gated repositories"
        f" (the Hub says: {said})"
    )


def _local(error: OSError, source: HubSource, folder: Path) -> PrefetchFailed:
    if error.errno in _FULL:
        return PrefetchFailed(f"{folder}: the disk is full; make room, then {RESUMES}")
    if error.errno is None:
        # The library's own check of the length.
        return PrefetchFailed(
            f"{source.endpoint} sent less or more than it announced ({first_line(error)}); {RESUMES}",
            EXIT_CANNOT_START,
        )
    where = error.filename or folder
    return PrefetchFailed(f"{where}: {error.strerror}; this user must be able to read and write it")
