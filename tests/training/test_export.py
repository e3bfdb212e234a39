"""What is exported is a FLUX model like any other: stock classes, our loader, our quantizer, any size."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline

from gpu_worker.digests import check_digests
from gpu_worker.engines.engine import EngineJob
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.manifest import read_manifest
from gpu_worker.model_store import check_flux_folder
from gpu_worker.quantize import main as quantize
from proto.messages import ImageParameters
from training.autoencoder import untrained_vae
from training.export import SIZE_MAX_BYTES, write_model
from training.geometry import make_transformer
from training.latents import Latents
from training.text import TextEncoders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained."""
    folder = tmp_path_factory.mktemp("hub") / "model"
    torch.manual_seed(8)
    vae = untrained_vae(8)
    size = write_model(
        folder,
        latents=Latents(vae, 0.1, 0.9),
        text=TextEncoders(),
        transformer=make_transformer(),
        recipe="tiny-8",
        report="\n## Training\n\nNone, {}.\n".format,
    )
    assert 4_000_000 < size <= SIZE_MAX_BYTES
    return folder


def size_drawn(folder: Path, height: int, width: int) -> tuple[int, ...]:
    engine = FluxEngine(folder, device="cpu", threads=1)
    engine.load(lambda _what, _percent: None)
    engine.warm_up()
    parameters = ImageParameters(height=height, width=width, steps=2, guidance=3.5, seed=1)
    job = EngineJob(execution_id=bytes(16), job_id=bytes(16), prompt="a red circle", parameters=parameters)
    return engine.generate(job, lambda _phase, _step: None).image.shape


def test_stock_classes_load_it(model: Path) -> None:
    pipeline = FluxPipeline.from_pretrained(
        model, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae_scale_factor == 16
    assert pipeline.vae.config.scaling_factor == pytest.approx(1 / 0.9)
    assert pipeline.vae.config.shift_factor == pytest.approx(0.1)
    assert pipeline.tokenizer_2.model_max_length == 32
    picture = pipeline("a cat", height=64, width=96, num_inference_steps=2, max_sequence_length=32).images[0]
    assert picture.size == (96, 64)


def test_the_text_means_the_same_after_loading(model: Path) -> None:
    """The pipeline pads, and masks nothing: as in training."""
    pipeline = FluxPipeline.from_pretrained(
        model, dtype=torch.float32, local_files_only=True, low_cpu_mem_usage=False
    )
    text = TextEncoders().eval()
    text.clip, text.t5 = pipeline.text_encoder, pipeline.text_encoder_2
    with torch.no_grad():
        states, pooled = text(["a small red circle, xyzzy", "a star"])
        found, found_pooled, _ = pipeline.encode_prompt(
            prompt=["a small red circle, xyzzy", "a star"], prompt_2=None, max_sequence_length=32
        )
    assert torch.allclose(states, found, atol=1e-5)
    assert torch.allclose(pooled, found_pooled, atol=1e-5)


def test_it_has_a_manifest_and_a_card(model: Path) -> None:
    check_flux_folder(model)
    manifest = read_manifest(model)
    assert manifest is not None
    assert "README.md" in manifest.files
    check_digests(model, manifest, lambda _count: None)
    assert manifest.revision.startswith("tiny-8-")
    assert (model / "README.md").read_text().endswith(f"None, {manifest.revision}.\n")


def test_our_engine_draws_any_size(model: Path) -> None:
    """A token is 32 pixels wide here, not FLUX.1-dev's 16: the engine asks the pipeline."""
    assert size_drawn(model, 100, 65) == (100, 65, 3)


def test_our_quantizer_takes_it(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model-4bit"
    assert quantize(["--source", str(model), "--target", str(target), "--device", "cpu", "--fast"]) == 0
    assert size_drawn(target, 64, 64) == (64, 64, 3)
