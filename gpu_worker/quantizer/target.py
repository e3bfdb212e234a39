"""The new folder: claimed before anything is written to it, and finished with its manifest."""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.flux_architecture import LARGE
from gpu_worker.manifest import (
    MANIFEST_NAME,
    BytesDone,
    Manifest,
    Quantization,
    file_entry,
    read_manifest,
    write_manifest,
)
from gpu_worker.model_store import check_flux_folder
from gpu_worker.quantizer.block_file import UNFINISHED_SUFFIX, sync
from gpu_worker.quantizer.hqq_layer import hqq_version
from gpu_worker.quantizer.source import Source
from gpu_worker.quantizer.work import Piece
from proto.versions import DISTRIBUTION, version_of

MARKER_NAME: Final = "quantize.unfinished"
_MARKER_TEXT: Final = "`python -m gpu_worker quantize` has not finished this folder. Run again it goes on.\n"
_MARGIN_BYTES: Final = 64 * 1024 * 1024


def quantization(*, optimized: bool) -> Quantization:
    made_by = f"{DISTRIBUTION} {version_of(DISTRIBUTION)}, hqq {hqq_version()}"
    return Quantization(components=list(LARGE), tool=made_by if optimized else f"{made_by}, not optimized")


def is_finished(target: Path, source: Source, wanted: Quantization) -> bool:
    """Whether this very folder was made from this source before.

    Raises:
        ModelUnusable: it is a finished folder, but another one, damaged, or the source itself.
    """
    _require_apart(target.resolve(), source.folder.resolve())
    manifest = read_manifest(target) if target.is_dir() else None
    if manifest is None:
        return False
    expected = source.name, source.revision, wanted
    if (manifest.source, manifest.revision, manifest.quantization) == expected:
        check_flux_folder(target)
        return True
    made_by = manifest.quantization.tool if manifest.quantization is not None else "prefetch"
    raise ModelUnusable(
        f"{target.absolute()}: holds {manifest.source} at revision {manifest.revision}, made by {made_by},"
        f" but {source.name} at {source.revision} is to be made by {wanted.tool}:"
        " remove it, or choose another --target"
    )


@contextmanager
def claimed(target: Path) -> Iterator[None]:
    """The target is ours alone in here. What is left after an error is gone on with by the next run.

    Raises:
        ModelUnusable: it holds something else, or another process is at work on it.
        OSError: it cannot be written.
    """
    if target.exists() and not target.is_dir():
        raise ModelUnusable(f"{target.absolute()}: is a file; a new or empty folder is expected")
    there = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
    if there and MARKER_NAME not in there:
        raise ModelUnusable(
            f"{target.absolute()}: holds {there[0]} and was not begun by quantize; expected: an empty folder"
        )
    target.mkdir(parents=True, exist_ok=True)
    with (target / MARKER_NAME).open("a+", encoding="utf-8") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ModelUnusable(f"{target.absolute()}: another process is quantizing into it") from error
        if marker.tell() == 0:
            marker.write(_MARKER_TEXT)
            marker.flush()
        yield


def _require_apart(target: Path, source: Path) -> None:
    if target == source or source in target.parents or target in source.parents:
        raise ModelUnusable(f"{target}: the new folder must be apart from the source, {source}")


def require_space(target: Path, source: Source, pieces: Sequence[Piece]) -> None:
    """Raises `ModelUnusable`: what is not there yet does not fit onto the disk."""
    missing = sum(piece.size_bytes for piece in pieces if not (target / piece.path).is_file())
    # A file that is made again needs its room twice for a moment.
    at_once = max((piece.size_bytes for piece in pieces), default=0)
    copied = sum(
        (source.folder / path).stat().st_size for path in source.copied if not (target / path).is_file()
    )
    needed, free = missing + at_once + copied + _MARGIN_BYTES, shutil.disk_usage(target).free
    if needed > free:
        raise ModelUnusable(
            f"{target.absolute()}: {needed / 1e9:.1f} GB are needed on the disk, {free / 1e9:.1f} GB are free"
        )


def copy_unchanged(target: Path, source: Source) -> None:
    """Raises `OSError`."""
    for path in source.copied:
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(file.name + UNFINISHED_SUFFIX)
        shutil.copyfile(source.folder / path, unfinished)
        sync(unfinished)
        unfinished.replace(file)


def remove_strangers(target: Path, pieces: Sequence[Piece]) -> None:
    """What an earlier run left that the present one has no use for. Raises `OSError`."""
    expected = {target / piece.path for piece in pieces}
    for component in LARGE:
        for file in (target / component).iterdir():
            if file not in expected and file.name != "config.json":
                file.unlink()


def listed_paths(source: Source, pieces: Sequence[Piece]) -> list[str]:
    """All files that the manifest lists."""
    return sorted([*source.copied, *(piece.path for piece in pieces)])


def finish(
    target: Path, source: Source, made: Quantization, pieces: Sequence[Piece], done: BytesDone
) -> None:
    """Write the manifest, and give the folder free. Raises `OSError`."""
    files = {path: file_entry(target / path, done) for path in listed_paths(source, pieces)}
    write_manifest(
        target, Manifest(source=source.name, revision=source.revision, quantization=made, files=files)
    )
    sync(target / MANIFEST_NAME)
    (target / MARKER_NAME).unlink()
    sync(target)
