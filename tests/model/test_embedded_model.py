"""The embedded model: whole, a FLUX model like any other, and one that draws what it is asked."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from samples.pictures import names_seen

from gpu_worker.digests import check_digests
from gpu_worker.engine_child import make_engine
from gpu_worker.engine_pipe import EngineOptions
from gpu_worker.engines.engine import Engine, EngineJob, ModelUnusable, RgbImage
from gpu_worker.manifest import read_manifest
from gpu_worker.model_store import Embedded, check_flux_folder
from proto.messages import ImageParameters

SHIPPED_MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    loaded = make_engine(Embedded(warning="small"), EngineOptions(device="cpu"))
    card = loaded.load(lambda _what, _percent: None)
    assert (card.engine, card.device, card.precision, card.warning) == ("embedded", "cpu", "fp32", "small")
    return loaded


def draw(engine: Engine, prompt: str, seed: int = 1, *, steps: int = 8, guidance: float = 3.5) -> RgbImage:
    parameters = ImageParameters(height=256, width=256, steps=steps, guidance=guidance, seed=seed)
    wanted = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt=prompt, parameters=parameters)
    return engine.generate(wanted, lambda _phase, _step: None).image


def test_it_is_what_its_manifest_says(embedded_folder: Path) -> None:
    check_flux_folder(embedded_folder)
    manifest = read_manifest(embedded_folder)
    assert manifest is not None
    check_digests(embedded_folder, manifest, lambda _count: None)
    size = sum(file.stat().st_size for file in embedded_folder.rglob("*") if file.is_file())
    assert size <= SHIPPED_MAX_BYTES


def test_a_changed_byte_is_noticed(embedded_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_folder, tmp_path / "changed"))
    manifest = read_manifest(folder)
    assert manifest is not None
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelUnusable, match=r"vae/diffusion_pytorch_model\.safetensors has another SHA-256"):
        check_digests(folder, manifest, lambda _count: None)


def test_it_is_a_flux_model_like_any_other(embedded_folder: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(
        embedded_folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.tokenizer_2.model_max_length == 32
    assert pipeline.vae_scale_factor == 16
    picture = pipeline("a cat", height=64, width=32, num_inference_steps=2, max_sequence_length=32).images[0]
    assert picture.size == (32, 64)


def test_it_draws_what_it_is_asked(engine: Engine) -> None:
    assert names_seen(draw(engine, "a yellow star on a blue background")) == ("blue", "yellow", "star")
    assert names_seen(draw(engine, "a red circle, white background")) == ("white", "red", "circle")


def test_an_unknown_word_does_no_harm(engine: Engine) -> None:
    assert names_seen(draw(engine, "a grumpy yellow star on a blue background")) == ("blue", "yellow", "star")


def test_guidance_matters(engine: Engine) -> None:
    words = "a yellow star on a blue background"
    assert (draw(engine, words, guidance=1.0) != draw(engine, words, guidance=5.0)).any()
