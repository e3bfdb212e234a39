"""Files from the Hub into a folder: a few at once, verified before they get their names, resumed later.

huggingface_hub 2.4 throws an unfinished file away when its process ends (`_download_to_tmp_and_move`), which
may be ten gigabytes. So only its transfer (`http_get`, with retries and a progress bar) is used, and the
unfinished files are ours. That is plain HTTP: hf_xet takes no part, installed or not.
"""

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, Self

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils import tqdm as hub_tqdm

from gpu_worker.engines.error_text import first_line
from gpu_worker.hub_errors import RESUMES, HubSource, PrefetchFailed
from gpu_worker.hub_listing import HubFile, verified
from gpu_worker.manifest import BytesDone, FileEntry
from gpu_worker.model_store import UNFINISHED_FOLDER
from proto.exit_status import EXIT_CANNOT_START

_AT_ONCE: Final = 4
_LISTING_LIMIT_S: Final = 30.0
_PROGRAM: Final = "flux-server"
_DIGEST: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""SHA-1 of git, or SHA-256."""


def list_files(source: HubSource) -> tuple[str, tuple[HubFile, ...]]:
    """The commit that the revision means, and all files of it.

    Raises:
        PrefetchFailed: the answer is not that of a Hub, or lacks sizes or digests.
        httpx2.HTTPError: no answer, or a refusal.
    """
    api = HfApi(endpoint=source.endpoint, token=source.token or False, library_name=_PROGRAM)
    try:
        model = api.model_info(
            source.repository, revision=source.revision, files_metadata=True, timeout=_LISTING_LIMIT_S
        )
        if model.sha is None:
            raise TypeError("no commit")
        return str(model.sha), tuple(_hub_file(sibling) for sibling in model.siblings or ())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # A mirror that leaves them out, or the page on which a hotel asks for a room number.
        raise PrefetchFailed(
            f"{source.endpoint} does not list {source.repository} with sizes and digests as the Hub does"
            f" ({first_line(error)}); expected is another HF_ENDPOINT, or a network that lets it through"
        ) from error


def _hub_file(sibling: Any) -> HubFile:
    path, lfs = sibling.rfilename, sibling.lfs
    size_bytes = int(sibling.size if lfs is None else lfs.size)
    digest = str(sibling.blob_id if lfs is None else lfs.sha256)
    # A part of the digest becomes a part of a file's name.
    if not isinstance(path, str) or size_bytes < 0 or _DIGEST.fullmatch(digest) is None:
        raise TypeError(f"{path!r} has no digest or no size")
    return HubFile(
        path=path,
        size_bytes=size_bytes,
        algorithm="git-sha1" if lfs is None else "sha256",
        digest=digest,
    )


def bytes_to_come(files: Sequence[HubFile], folder: Path) -> int:
    """How much the folder will grow. Files of the right size are taken for right here."""
    return sum(file.size_bytes - _size_there(file, folder) for file in files)


def _size_there(file: HubFile, folder: Path) -> int:
    whole = _size_bytes(folder / file.path)
    return whole if whole == file.size_bytes else min(file.size_bytes, _size_bytes(_unfinished(file, folder)))


def fetch_files(source: HubSource, files: Sequence[HubFile], folder: Path) -> dict[str, FileEntry]:
    """Bring these files of a commit into the folder; what is there and right stays.

    Raises:
        PrefetchFailed: a file is not what the Hub describes; it is removed.
        httpx2.HTTPError, OSError: out of a transfer; what has come is kept for the next time.
    """
    (folder / UNFINISHED_FOLDER).mkdir(parents=True, exist_ok=True)
    total = sum(file.size_bytes for file in files)
    with _checking_bar(total) as on_bytes, _Transfer(source, folder, on_bytes) as transfer:
        return transfer.run(files)


@contextmanager
def _checking_bar(total: int) -> Iterator[BytesDone]:
    bar = hub_tqdm(
        total=total, unit="B", unit_scale=True, desc="checked", disable=None, name=f"{_PROGRAM}.checked"
    )
    with bar:
        yield bar.update


class _Stopped(Exception):
    """Out of a transfer that another one's failure, or a person, has ended."""


@contextmanager
def _ended_by_the_next() -> Iterator[None]:
    """Another Ctrl-C or SIGTERM ends the process: a stalled transfer notices the first a minute later."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


class _Transfer:
    """A few threads, which end with the first failure."""

    def __init__(self, source: HubSource, folder: Path, on_bytes: BytesDone) -> None:
        self._source = source
        self._folder = folder
        self._on_bytes = on_bytes
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="prefetch")
        self._headers = build_hf_headers(token=source.token or False, library_name=_PROGRAM) | {
            # A compressed answer cannot be resumed.
            "Accept-Encoding": "identity"
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        self._stop.set()
        with _ended_by_the_next() if kind is KeyboardInterrupt else nullcontext():
            self._pool.shutdown(cancel_futures=True)

    def run(self, files: Sequence[HubFile]) -> dict[str, FileEntry]:
        running = {self._pool.submit(self._bring, file): file.path for file in files}
        return {running[done]: done.result() for done in as_completed(running)}

    def _bring(self, file: HubFile) -> FileEntry:
        target, unfinished = self._folder / file.path, _unfinished(file, self._folder)
        entry = verified(target, file, self._checked)
        if entry is not None:
            return entry
        self._complete(file, unfinished)
        entry = verified(unfinished, file, self._checked)
        if entry is None:
            unfinished.unlink()
            raise PrefetchFailed(
                f"{file.path} has another digest than the Hub announced: it is removed; {RESUMES}",
                EXIT_CANNOT_START,
            )
        target.parent.mkdir(exist_ok=True)
        unfinished.replace(target)
        return entry

    def _checked(self, count: int) -> None:
        self._go_on()
        self._on_bytes(count)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _complete(self, file: HubFile, unfinished: Path) -> None:
        """Again after a reset, which the library does not retry, as long as each time brings some of it."""
        if _size_bytes(unfinished) > file.size_bytes:
            unfinished.unlink()
        while True:
            before = _size_bytes(unfinished)
            try:
                self._append(file, unfinished, before)
                return
            except httpx2.ReadError:
                if _size_bytes(unfinished) == before:
                    raise

    def _append(self, file: HubFile, unfinished: Path, resume_size: int) -> None:
        # The URL redirects to where the file lies; the client takes the token out for another host.
        source = self._source
        url = hf_hub_url(source.repository, file.path, revision=source.revision, endpoint=source.endpoint)
        with unfinished.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=resume_size,
                headers=self._headers,
                expected_size=file.size_bytes,
                displayed_filename=file.path,
                tqdm_class=_stoppable_bar(self._go_on),
            )


def _stoppable_bar(go_on: Any) -> Any:
    """The Hub's progress bar: what it is called for is each chunk, so here a transfer can be ended."""

    class StoppableBar(hub_tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> Any:
            go_on()
            return super().update(n)

    return StoppableBar


def _unfinished(file: HubFile, folder: Path) -> Path:
    """Named for its content too: another revision's file is not continued with this one's."""
    return folder / UNFINISHED_FOLDER / f"{file.path.replace('/', '--')}.{file.digest[:16]}"


def _size_bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0
