"""Which engine the settings mean, and what is said about a model folder that cannot be used."""

import json
import pickle  # noqa: TID251 - the choice crosses the pipe to the engine process
from pathlib import Path

import pytest

from gpu_worker.digests import folder_entries
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, Manifest, Quantization, write_manifest
from gpu_worker.model_store import (
    UNFINISHED_FOLDER,
    Embedded,
    EngineChoice,
    EngineName,
    Fake,
    FluxFolder,
    check_embedded_folder,
    choose_engine,
)

FAKE = Fake(step_s=0.1, load_s=0.0, faults=False)
INDEX = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}
WEIGHTED = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def flux_folder(tmp_path: Path) -> Path:
    """What looks like a FLUX model; its tensors are empty files."""
    folder = tmp_path / "FLUX.1-dev"
    for name in INDEX:
        if not name.startswith("_"):
            (folder / name).mkdir(parents=True)
            plain = {"scheduler": "scheduler_config.json"} | dict.fromkeys(
                ("tokenizer", "tokenizer_2"), "tokenizer.json"
            )
            (folder / name / plain.get(name, "config.json")).write_text("{}")
    for name in WEIGHTED:
        (folder / name / "model.safetensors").touch()
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def choose(engine: EngineName, folder: Path) -> EngineChoice:
    return choose_engine(engine, model_dir=folder, fake=FAKE)


def test_auto_takes_a_flux_folder(flux_folder: Path) -> None:
    assert choose("auto", flux_folder) == choose("flux", flux_folder) == FluxFolder(path=flux_folder)


def test_auto_without_a_folder_is_the_embedded_model_and_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    choice = choose("auto", missing)
    assert isinstance(choice, Embedded)
    assert str(missing) in choice.warning
    assert not missing.exists()


def test_auto_with_a_foreign_pipeline_is_the_embedded_model(flux_folder: Path) -> None:
    (flux_folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert isinstance(choose("auto", flux_folder), Embedded)


def test_auto_does_not_pass_over_a_broken_flux_folder(flux_folder: Path) -> None:
    (flux_folder / "vae" / "model.safetensors").unlink()
    with pytest.raises(ModelUnusable, match=r"vae has no \.safetensors"):
        choose("auto", flux_folder)


def test_fake_and_embedded_only_by_name(flux_folder: Path) -> None:
    assert choose("fake", flux_folder) == FAKE
    embedded = choose("embedded", flux_folder)
    assert isinstance(embedded, Embedded)
    assert "simple shapes" in embedded.warning


def break_index(folder: Path, **changes: object) -> None:
    (folder / "model_index.json").write_text(json.dumps(INDEX | changes))


def test_what_is_wrong_is_named(flux_folder: Path) -> None:
    def refusal() -> str:
        with pytest.raises(ModelUnusable) as refused:
            choose("flux", flux_folder)
        assert str(flux_folder) in str(refused.value)
        return str(refused.value)

    (flux_folder / "vae" / "config.json").unlink()
    (flux_folder / "transformer" / "model.safetensors").rename(
        flux_folder / "transformer" / "pytorch_model.bin"
    )
    (flux_folder / "scheduler" / "scheduler_config.json").unlink()
    (flux_folder / "tokenizer" / "tokenizer.json").rename(flux_folder / "tokenizer" / "vocab.json")
    (flux_folder / "tokenizer_2" / "tokenizer.json").rename(flux_folder / "tokenizer_2" / "spiece.model")
    told = refusal()
    assert "vae/config.json is missing" in told
    assert "transformer has no .safetensors file; pytorch_model.bin is not read" in told
    assert "scheduler has no scheduler_config.json" in told
    assert "tokenizer has no tokenizer.json or vocab.json with merges.txt" in told
    assert "tokenizer_2 has no" not in told
    (flux_folder / "scheduler").rmdir()
    assert "folder scheduler is missing" in refusal()
    (flux_folder / "text_encoder" / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    told = refusal()
    assert "text_encoder is quantized in a way that is not supported" in told
    assert "python -m gpu_worker quantize" in told
    assert "HighCWu/FLUX.1-dev-4bit" in told
    break_index(flux_folder, vae=["my_module", "MyCoder"], transformer=None)
    assert "vae is ['my_module', 'MyCoder'], expected AutoencoderKL" in refusal()
    break_index(flux_folder, _class_name="SomethingElse")
    assert "'SomethingElse', not 'FluxPipeline'" in refusal()
    (flux_folder / "model_index.json").write_text("[1]")
    assert "JSON object" in refusal()
    (flux_folder / "model_index.json").write_bytes(b"\xff{")
    assert "cannot be read" in refusal()
    (flux_folder / "model_index.json").unlink()
    assert "no model_index.json" in refusal()
    flux_folder.rename(flux_folder.with_name("elsewhere"))
    assert "no such folder" in refusal()


def describe(folder: Path, quantization: Quantization | None = None) -> None:
    write_manifest(
        folder,
        Manifest(source="a/b", revision="c", files=folder_entries(folder), quantization=quantization),
    )


def refusal_of(folder: Path) -> str:
    with pytest.raises(ModelUnusable) as refused:
        choose("auto", folder)
    return str(refused.value)


def test_a_folder_is_held_to_its_manifest(flux_folder: Path) -> None:
    describe(flux_folder)
    (flux_folder / "vae" / ".DS_Store").touch()
    (flux_folder / "flux1-dev.safetensors").touch()
    assert choose("auto", flux_folder) == FluxFolder(path=flux_folder)
    (flux_folder / "transformer" / "planted.safetensors").touch()
    (flux_folder / "tokenizer" / "deeper").mkdir()
    (flux_folder / "tokenizer" / "deeper" / "planted.json").touch()
    (flux_folder / "text_encoder" / "model.safetensors").write_bytes(b"12")
    (flux_folder / "scheduler" / "scheduler_config.json").rename(flux_folder / "scheduler" / "other.json")
    told = refusal_of(flux_folder)
    assert "transformer/planted.safetensors is not listed" in told
    assert "tokenizer/deeper/planted.json is not listed" in told
    assert "text_encoder/model.safetensors has 2 bytes, 0 are listed" in told
    assert "scheduler/scheduler_config.json is missing" in told
    (flux_folder / MANIFEST_NAME).write_text("{}")
    assert "not a manifest" in refusal_of(flux_folder)


def test_only_its_manifest_makes_a_quantized_component_ours(flux_folder: Path) -> None:
    for name in ("transformer", "text_encoder_2"):
        (flux_folder / name / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    describe(flux_folder, Quantization(components=["transformer", "text_encoder_2"], tool="x"))
    assert choose("flux", flux_folder) == FluxFolder(path=flux_folder)
    describe(flux_folder, Quantization(components=["transformer"], tool="x"))
    told = refusal_of(flux_folder)
    assert "text_encoder_2 is quantized" in told
    assert "transformer is quantized" not in told


def test_half_a_download_is_never_taken_for_a_model(flux_folder: Path) -> None:
    (flux_folder / UNFINISHED_FOLDER).mkdir()
    assert f"half-finished; to go on: python -m gpu_worker prefetch --target {flux_folder}" in refusal_of(
        flux_folder
    )
    (flux_folder / "model_index.json").unlink()
    assert "half-finished" in refusal_of(flux_folder), "auto draws nothing else instead"


def test_choices_cross_the_pipe(tmp_path: Path) -> None:
    for choice in (FAKE, FluxFolder(path=tmp_path), Embedded(warning="w")):
        assert pickle.loads(pickle.dumps(choice)) == choice


@pytest.mark.parametrize(
    ("folder", "problem"), [("none", "none: no such folder"), ("", "no model_index.json")]
)
def test_a_worker_without_its_embedded_model_says_to_install_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, problem: str
) -> None:
    check_embedded_folder()
    monkeypatch.setattr("gpu_worker.model_store.EMBEDDED_FOLDER", tmp_path / folder)
    with pytest.raises(ModelUnusable, match=f"install the worker again: .*{problem}"):
        check_embedded_folder()
