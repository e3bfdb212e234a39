"""Which files of a repository on the Hub make a FLUX model in diffusers' layout. Without huggingface_hub."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gpu_worker.manifest import BytesDone, FileEntry, file_entry

_WEIGHTED: Final = r"(?:transformer|vae|text_encoder|text_encoder_2)"
_STEM: Final = r"(?:diffusion_pytorch_model|model)"
# No variants (`model.fp16.safetensors`), no pickled weights, and not the one-file copies at the top.
_NEEDED: Final = re.compile(
    r"model_index\.json"
    r"|scheduler/scheduler_config\.json"
    r"|tokenizer(?:_2)?/[A-Za-z0-9_-]+\.(?:json|txt|model)"
    rf"|{_WEIGHTED}/config\.json"
    rf"|{_WEIGHTED}/{_STEM}(?:-[0-9]{{5}}-of-[0-9]{{5}})?\.safetensors"
    rf"|{_WEIGHTED}/{_STEM}\.safetensors\.index\.json"
)
_PARTS: Final = {
    "model_index.json": r"model_index\.json",
    "scheduler/scheduler_config.json": r"scheduler/scheduler_config\.json",
    "tokenizer/tokenizer.json or merges.txt": r"tokenizer/(?:tokenizer\.json|merges\.txt)",
    "tokenizer_2/tokenizer.json or spiece.model": r"tokenizer_2/(?:tokenizer\.json|spiece\.model)",
} | {
    f"{name}/{file}": rf"{name}/{pattern}"
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
    for file, pattern in (("config.json", r"config\.json"), ("*.safetensors", r".+\.safetensors"))
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file of one commit, as the Hub describes it."""

    path: str
    size_bytes: int
    algorithm: Literal["sha256", "git-sha1"]
    """Large files (Git LFS) have the first, files in git itself have git's own."""
    digest: str


def needed_files(listed: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """What a worker reads, the smallest first: then a refusal comes before anything large."""
    found = (file for file in listed if _NEEDED.fullmatch(file.path))
    return tuple(sorted(found, key=lambda file: (file.size_bytes, file.path)))


def missing_parts(files: Iterable[HubFile]) -> list[str]:
    """What a FLUX pipeline has and these files lack, as patterns."""
    paths = [file.path for file in files]
    return [
        part for part, pattern in _PARTS.items() if not any(re.fullmatch(pattern, path) for path in paths)
    ]


def verified(file: Path, expected: HubFile, on_bytes: BytesDone) -> FileEntry | None:
    """The manifest's entry for this file, or None if it is not what the Hub describes. Raises `OSError`."""
    if not file.is_file() or file.stat().st_size != expected.size_bytes:
        return None
    entry = file_entry(file, on_bytes)
    found = entry.sha256 if expected.algorithm == "sha256" else _git_sha1(file.read_bytes())
    return entry if found == expected.digest else None


def _git_sha1(content: bytes) -> str:
    """Git's name for this content: that of the object with its header."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
