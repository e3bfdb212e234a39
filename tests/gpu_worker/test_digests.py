"""Digests of a folder's files against its manifest."""

import os
from pathlib import Path

import pytest

from gpu_worker.digests import check_digests, folder_entries
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, Manifest, write_manifest

SIZES = {"model_index.json": 10, "vae/model.safetensors": 5_000_000, "vae/config.json": 0}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "vae").mkdir()
    for name, size in SIZES.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").touch()
    described = Manifest(source="a/b", revision="c", files=folder_entries(tmp_path))
    write_manifest(tmp_path, described)
    return described


def test_an_untouched_folder(tmp_path: Path, manifest: Manifest) -> None:
    told: list[int] = []
    check_digests(tmp_path, manifest, told.append)
    assert sum(told) == sum(SIZES.values())
    assert set(manifest.files) == set(SIZES)
    assert folder_entries(tmp_path) == manifest.files, f"{MANIFEST_NAME} does not list itself"


def test_all_that_is_wrong_is_named(tmp_path: Path, manifest: Manifest) -> None:
    weights = tmp_path / "vae" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[3_000_000] ^= 1
    weights.write_bytes(content)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "vae" / "config.json").write_text("{}")
    with pytest.raises(ModelUnusable) as refused:
        check_digests(tmp_path, manifest, lambda _count: None)
    told = str(refused.value)
    assert str(tmp_path) in told
    assert "vae/model.safetensors has another SHA-256" in told
    assert "model_index.json cannot be read: No such file" in told
    assert "vae/config.json has 2 bytes, 0 are listed" in told


def test_what_on_bytes_raises_ends_it(tmp_path: Path, manifest: Manifest) -> None:
    def stop(_count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_digests(tmp_path, manifest, stop)
