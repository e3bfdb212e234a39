"""The manifest of a prepared model folder: where its files come from, how they are stored, their digests.

`prefetch` and `quantize` write it, the engine reads it before it loads. Without torch.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from gpu_worker.engines.engine import ModelUnusable

MANIFEST_NAME: Final = "flux-server.json"
_UNFINISHED_SUFFIX: Final = ".unfinished"

BytesDone = Callable[[int], None]
"""Called with the number of bytes that were read since the last call."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    strange = {"\\", "\0"} & set(path)
    if not parts or path != "/".join(parts) or parts[0] == "/" or ".." in parts or strange:
        raise ValueError("must be a plain path inside the folder")
    return path


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class FileEntry(_Part):
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Quantization(_Part):
    """How the linear layers in the blocks of these components are stored."""

    method: Literal["hqq"] = "hqq"
    bits: Literal[4] = 4
    group_size: Literal[64] = 64
    axis: Literal[1] = 1
    components: Annotated[list[Literal["transformer", "text_encoder_2"]], Field(min_length=1)]
    tool: Annotated[str, Field(max_length=128)]
    """What made it, with its version."""


class Manifest(_Part):
    format: Literal[1] = 1
    source: Annotated[str, Field(min_length=1, max_length=256)]
    """The repository on the Hub, or another name of where the weights come from."""
    revision: Annotated[str, Field(min_length=1, max_length=128)]
    """Its commit."""
    quantization: Quantization | None = None
    files: dict[Annotated[str, AfterValidator(_inside)], FileEntry]
    """All files of the folder that are read, by their path in it with `/`."""


def read_manifest(folder: Path) -> Manifest | None:
    """None for a folder without one: somebody else prepared it.

    Raises:
        ModelUnusable: it cannot be read, or is no such manifest; the text says where.
    """
    file = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelUnusable(f"{file.absolute()}: cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
        raise ModelUnusable(f"{file.absolute()}: not a manifest of this version: {why}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Whole or not at all. Raises `OSError`."""
    unfinished = folder / f"{MANIFEST_NAME}{_UNFINISHED_SUFFIX}"
    unfinished.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    unfinished.replace(folder / MANIFEST_NAME)


def file_entry(file: Path, on_bytes: BytesDone = lambda _count: None) -> FileEntry:
    """What a manifest says of this file. Raises `OSError`."""
    digest, size_bytes = hashlib.sha256(), 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
            size_bytes += len(chunk)
            on_bytes(len(chunk))
    return FileEntry(size_bytes=size_bytes, sha256=digest.hexdigest())
