"""`python -m gpu_worker prefetch`: the model from the Hub in a folder, verified, with a manifest.

The manifest comes last: a folder without one is not finished, or somebody else's.
"""

import fcntl
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import huggingface_hub.constants
from huggingface_hub.utils import tqdm as hub_tqdm

from gpu_worker.digests import check_digests
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.hub_download import bytes_to_come, fetch_files, list_files
from gpu_worker.hub_errors import LOG_IN, RESUMES, HubSource, PrefetchFailed, explained
from gpu_worker.hub_listing import HubFile, missing_parts, needed_files
from gpu_worker.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from gpu_worker.model_store import UNFINISHED_FOLDER, check_flux_folder, component_files
from gpu_worker.prefetch_settings import PrefetchSettings
from proto.configuration import load_settings
from proto.exit_status import EXIT_BAD_CONFIGURATION, EXIT_CANNOT_START, EXIT_INTERRUPTED

PROGRAM: Final = "gpu_worker prefetch"

_SPARE_BYTES: Final = 512 * 1024 * 1024
"""Left free on the disk, for everybody else."""
_TOKEN: Final = re.compile(r"[!-~]+")
"""What a header can hold; errors about one that it cannot would show it."""
_GB: Final = 1_000_000_000


def main(argv: Sequence[str]) -> int:
    settings = load_settings(PrefetchSettings, argv, PROGRAM)
    try:
        _prepare(settings)
    except PrefetchFailed as failed:
        _say(str(failed))
        return failed.status
    except ModelUnusable as error:
        _say(str(error))
        return EXIT_BAD_CONFIGURATION
    except KeyboardInterrupt:
        _say(f"stopped; {RESUMES}")
        return EXIT_INTERRUPTED
    return 0


def _say(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def _prepare(settings: PrefetchSettings) -> None:
    source = HubSource(
        endpoint=settings.endpoint, repository=settings.repository, revision=settings.revision, token=None
    )
    try:
        before = _manifest_there(settings)
        if before is not None and before.revision == settings.revision and _is_whole(settings, before):
            _report("is whole already", settings.target, before)
            return
        source = _online(source)
        commit, listed = list_files(source)
        if before is not None and before.revision == commit and _is_whole(settings, before):
            _report("is whole already", settings.target, before)
            return
        manifest = _download(source, commit, _needed(source, listed), settings.target)
        _report("is ready", settings.target, manifest)
    except Exception as error:
        failed = explained(error, source, settings.target)
        if failed is None:
            raise
        raise failed from error


def _manifest_there(settings: PrefetchSettings) -> Manifest | None:
    """Raises `PrefetchFailed` if the folder holds another model."""
    if not settings.target.is_dir():
        return None
    try:
        manifest = read_manifest(settings.target)
    except ModelUnusable as error:
        raise PrefetchFailed(f"{error}; remove it, and the folder is checked and completed") from error
    if manifest is None:
        return None
    if manifest.source != settings.repository or manifest.quantization is not None:
        kind = "a 4-bit copy of " if manifest.quantization is not None else ""
        raise PrefetchFailed(
            f"{settings.target} holds {kind}{manifest.source}: choose another --target for"
            f" {settings.repository}"
        )
    return manifest


def _is_whole(settings: PrefetchSettings, manifest: Manifest) -> bool:
    try:
        check_flux_folder(settings.target)
        if settings.verify:
            _verify(settings.target, manifest)
    except ModelUnusable as error:
        _say(f"{error}; what is wrong is fetched again")
        return False
    return True


def _verify(folder: Path, manifest: Manifest) -> None:
    total = sum(entry.size_bytes for entry in manifest.files.values())
    with hub_tqdm(total=total, unit="B", unit_scale=True, desc="checked", disable=None) as bar:
        check_digests(folder, manifest, bar.update)


def _online(source: HubSource) -> HubSource:
    """The source with the user's token, if there is one. Raises `PrefetchFailed`."""
    if huggingface_hub.constants.is_offline_mode():
        raise PrefetchFailed(
            "offline mode is set (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE): nothing can be downloaded;"
            " unset it for this command"
        )
    token = huggingface_hub.get_token()
    if token is not None and _TOKEN.fullmatch(token) is None:
        raise PrefetchFailed(f"what is set as the token cannot be one (hidden): {LOG_IN}")
    return replace(source, token=token)


def _needed(source: HubSource, listed: Sequence[HubFile]) -> tuple[HubFile, ...]:
    files = needed_files(listed)
    missing = missing_parts(files)
    if missing:
        raise PrefetchFailed(
            f"{source.repository} at {source.revision} is no FLUX model in diffusers' layout: it has no"
            f" {', '.join(missing)}"
        )
    return files


def _download(source: HubSource, commit: str, files: tuple[HubFile, ...], folder: Path) -> Manifest:
    (folder / UNFINISHED_FOLDER).mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        _remove_outdated(folder, files)
        _check_room(folder, files)
        entries = fetch_files(replace(source, revision=commit), files, folder)
        manifest = Manifest(source=source.repository, revision=commit, files=dict(sorted(entries.items())))
        write_manifest(folder, manifest)
        check_flux_folder(folder)
        shutil.rmtree(folder / UNFINISHED_FOLDER)
    return manifest


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    with (folder / UNFINISHED_FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PrefetchFailed(f"{folder}: another prefetch is at work here", EXIT_CANNOT_START) from error
        yield


def _remove_outdated(folder: Path, files: tuple[HubFile, ...]) -> None:
    """The manifest, and what only it lists. What nobody lists is somebody's: raises `PrefetchFailed`."""
    before = read_manifest(folder)
    ours = {file.path for file in files} | (set() if before is None else set(before.files))
    foreign = [path for path in component_files(folder) if path not in ours]
    if foreign:
        raise PrefetchFailed(
            f"{folder}: {', '.join(foreign)}: not of this model, but would be read with it; remove it,"
            " or choose another --target"
        )
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    for path in ours - {file.path for file in files}:
        (folder / path).unlink(missing_ok=True)


def _check_room(folder: Path, files: tuple[HubFile, ...]) -> None:
    needed, free = bytes_to_come(files, folder), shutil.disk_usage(folder).free
    total = sum(file.size_bytes for file in files)
    if needed and needed + _SPARE_BYTES > free:
        raise PrefetchFailed(
            f"{folder}: {_gb(needed)} of {_gb(total)} are still to come, and {_gb(free)} are free, of which"
            f" {_gb(_SPARE_BYTES)} stay free: make room, or choose another --target"
        )
    _say(f"{folder}: {_gb(needed)} of {_gb(total)} to come")


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / _GB:.1f} GB"


def _report(state: str, folder: Path, manifest: Manifest) -> None:
    size = _gb(sum(entry.size_bytes for entry in manifest.files.values()))
    print(
        f"{folder} {state}: {len(manifest.files)} files, {size}, {manifest.source} at {manifest.revision}\n"
        f"next: FLUX_WORKER_MODEL_DIR={folder} make serve\n"
        f"or, for 4-bit weights: {sys.executable} -m gpu_worker quantize --source {folder}"
    )
