"""The manifest of a model folder: written whole, read strictly."""

import hashlib
import json
from pathlib import Path

import pytest

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    Quantization,
    file_entry,
    read_manifest,
    write_manifest,
)

ENTRY = FileEntry(size_bytes=3, sha256="0" * 64)
MANIFEST = Manifest(source="someone/model", revision="abc", files={"vae/model.safetensors": ENTRY})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    quantized = MANIFEST.model_copy(
        update={"quantization": Quantization(components=["transformer"], tool="hqq 1")}
    )
    for manifest in (MANIFEST, quantized):
        write_manifest(tmp_path, manifest)
        assert read_manifest(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_a_folder_without_one(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 2}, "format"),
        ({"files": {"../secret": ENTRY.model_dump()}}, "secret"),
        ({"files": {"/etc/passwd": ENTRY.model_dump()}}, "passwd"),
        ({"files": {"vae//x": ENTRY.model_dump()}}, "vae"),
        ({"files": {"vae/a\0b": ENTRY.model_dump()}}, "vae"),
        ({"files": {"x": {"size_bytes": -1, "sha256": "0" * 64}}}, "size_bytes"),
        ({"files": {"x": {"size_bytes": 1, "sha256": "short"}}}, "sha256"),
        ({"quantization": {"components": ["vae"], "tool": "x"}}, "quantization"),
        ({"quantization": {"bits": 3, "components": ["transformer"], "tool": "x"}}, "bits"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    content = json.loads(MANIFEST.model_dump_json()) | changes
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    with pytest.raises(ModelUnusable, match=named) as refused:
        read_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_NAME) in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{" * 100_000])
def test_what_is_no_manifest_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(ModelUnusable, match="not a manifest"):
        read_manifest(tmp_path)


def test_the_entry_of_a_file(tmp_path: Path) -> None:
    content, told = b"x" * 10_000_000, list[int]()
    (tmp_path / "file").write_bytes(content)
    entry = file_entry(tmp_path / "file", told.append)
    assert entry == FileEntry(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert sum(told) == len(content)
