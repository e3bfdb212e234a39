"""The embedded model: built offline, the same each time, and a FLUX model like any other."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from diffusers import FluxPipeline

from gpu_worker import embedded_model
from gpu_worker.digests import check_digests
from gpu_worker.embedded_model import (
    RECIPE,
    build_embedded_model,
    discard_embedded_model,
    embedded_model_folder,
)
from gpu_worker.engines.embedded import EmbeddedEngine
from gpu_worker.engines.engine import EngineJob, ModelUnusable, RgbImage
from gpu_worker.manifest import MANIFEST_NAME, read_manifest
from gpu_worker.model_store import check_flux_folder
from proto.messages import ImageParameters


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def engine(cache_dir: Path) -> EmbeddedEngine:
    return EmbeddedEngine(cache_dir, warning="tiny", device="cpu", threads=None)


def test_building_gives_the_same_bytes_each_time(embedded_folder: Path, tmp_path: Path) -> None:
    build_embedded_model(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(embedded_folder)
    size = sum(file.stat().st_size for file in embedded_folder.rglob("*") if file.is_file())
    assert size < 5_000_000


def test_it_is_a_flux_model_like_any_other(embedded_folder: Path) -> None:
    check_flux_folder(embedded_folder)
    pipeline = FluxPipeline.from_pretrained(
        embedded_folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.tokenizer_2.model_max_length == 64
    assert pipeline.vae_scale_factor == 8
    picture = pipeline("a cat", height=64, width=32, num_inference_steps=2, max_sequence_length=64).images[0]
    assert picture.size == (32, 64)


def test_tokenizers_know_any_text(embedded_folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(embedded_folder, local_files_only=True, low_cpu_mem_usage=False)
    unknown = pipeline.tokenizer_2.unk_token_id
    assert unknown not in pipeline.tokenizer_2("A cat & 3 dogs: ~100 % {happy}!").input_ids
    texts = ("", "猫", "кот", "\U0001f431", "\x00", "cat", "Cat's", "a\u0301", "\u200b")
    tokens = {tuple(pipeline.tokenizer(text).input_ids) for text in texts}
    assert len(tokens) >= len(texts) - 2, "apart from invisible characters, no two are alike"


def test_a_builder_that_is_overtaken_takes_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[Path] = []

    def overtaken_build(folder: Path) -> None:
        monkeypatch.setattr(embedded_model, "build_embedded_model", build_embedded_model)
        finished.append(embedded_model_folder(tmp_path / "new"))
        build_embedded_model(folder)

    monkeypatch.setattr(embedded_model, "build_embedded_model", overtaken_build)
    folder = embedded_model_folder(tmp_path / "new")
    assert finished == [folder]
    assert list((tmp_path / "new").iterdir()) == finished, "nothing unfinished is left"
    check_flux_folder(folder)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelUnusable, match=str(tmp_path / "file")):
        embedded_model_folder(tmp_path / "file")


def test_a_damaged_copy_is_built_again(tmp_path: Path) -> None:
    folder = embedded_model_folder(tmp_path)
    before = digests(folder)
    weights = next((folder / "vae").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    card = engine(tmp_path).load(lambda _what, _percent: None)
    assert (card.engine, card.device, card.precision, card.warning) == ("embedded", "cpu", "fp32", "tiny")
    assert digests(folder) == before
    discard_embedded_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_and_a_copy_without_a_manifest_are_noticed(tmp_path: Path) -> None:
    folder = embedded_model_folder(tmp_path)
    before = digests(folder)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (manifest.source, manifest.revision) == ("embedded-flux", str(RECIPE))
    check_digests(folder, manifest, lambda _count: None)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ModelUnusable, match=r"vae/diffusion_pytorch_model\.safetensors has another SHA-256"):
        check_digests(folder, manifest, lambda _count: None)
    (folder / MANIFEST_NAME).unlink()
    assert embedded_model_folder(tmp_path) == folder
    assert digests(folder) == before


def test_a_missing_device_is_no_reason_to_build_again(tmp_path: Path) -> None:
    absent = EmbeddedEngine(tmp_path, warning="", device="cuda:99", threads=None)
    with pytest.raises(ModelUnusable, match="device cuda:99"):
        absent.load(lambda _what, _percent: None)
    assert list(tmp_path.iterdir()) == []


def test_pictures_have_structure_and_depend_on_prompt_and_seed(cache_dir: Path) -> None:
    drawing = engine(cache_dir)
    drawing.load(lambda _what, _percent: None)

    def draw(prompt: str, seed: int) -> RgbImage:
        parameters = ImageParameters(height=256, width=256, steps=4, guidance=3.5, seed=seed)
        wanted = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt=prompt, parameters=parameters)
        return drawing.generate(wanted, lambda _phase, _step: None).image

    city, other_seed, cat = (
        draw("a futuristic cityscape", 1),
        draw("a futuristic cityscape", 2),
        draw("a cat", 1),
    )
    for picture in (city, other_seed, cat):
        assert picture.std() > 15, "not flat"
        neighbours = np.abs(np.diff(picture.astype(int), axis=1)).mean()
        distant = np.abs(picture[:, 128:].astype(int) - picture[:, :128].astype(int)).mean()
        assert neighbours < distant / 2, "shapes, not noise"
    by_seed = np.abs(city.astype(int) - other_seed.astype(int)).mean()
    by_prompt = np.abs(city.astype(int) - cat.astype(int)).mean()
    assert by_seed > 2
    assert by_prompt > 2 * by_seed
