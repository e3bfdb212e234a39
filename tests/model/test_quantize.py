"""`python -m gpu_worker quantize` on the embedded model, which is a FLUX model like any other."""

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import BAD, DONE, contents, load, quantize, shard, sign, tensors_of, weights
from safetensors import safe_open
from safetensors.torch import save_file

from gpu_worker.engines.flux import FluxEngine
from gpu_worker.engines.quantized_linear import QuantizedLinear
from gpu_worker.engines.weight_files import plain_weight_files, read_header
from gpu_worker.manifest import MANIFEST_NAME, file_entry, read_manifest
from gpu_worker.quantizer import target
from gpu_worker.quantizer.hqq_layer import quantize_weight


def drawn(folder: Path, *, expand: bool = False, seed: int = 1, prompt: str = "a red heart on white") -> Any:
    """(256, 256, 3), 0 to 255."""
    pipeline = load(folder, expand=expand)
    with torch.inference_mode():
        images = pipeline(
            prompt=prompt,
            height=256,
            width=256,
            num_inference_steps=4,
            max_sequence_length=32,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
    return 255 * images[0]


def quantized_layers(model: Any) -> dict[str, QuantizedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}


# --- What is made ------------------------------------------------------------------------------


def test_a_picture_from_four_bits_is_close_to_the_plain_one(
    embedded_folder: Path, quantized_folder: Path
) -> None:
    plain = drawn(embedded_folder)

    def distance(other: Any) -> float:
        return float(np.abs(other - plain).mean())

    quantized = distance(drawn(quantized_folder))
    assert 0 < quantized < 0.2 * distance(drawn(quantized_folder, prompt="a blue star on yellow"))


def test_expanded_draws_the_very_same_picture(quantized_folder: Path) -> None:
    """The dequantized weights are the same numbers, whenever it is done."""
    assert (drawn(quantized_folder, expand=True) == drawn(quantized_folder)).all()


def test_the_engine_takes_it_like_any_other_folder(quantized_folder: Path) -> None:
    engine = FluxEngine(quantized_folder, device="cpu", threads=1)
    assert engine.load(lambda _what, _percent: None).engine == "flux"
    engine.warm_up()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_expanded_holds_plain_layers_only(quantized_folder: Path, dtype: torch.dtype) -> None:
    resident, expanded = load(quantized_folder, dtype=dtype), load(quantized_folder, dtype=dtype, expand=True)
    for name in ("transformer", "text_encoder_2"):
        layers = quantized_layers(getattr(resident, name))
        assert layers
        assert not quantized_layers(getattr(expanded, name))
        for layer, quantized in layers.items():
            plain = getattr(expanded, name).get_submodule(layer)
            assert plain.weight.dtype is dtype
            assert torch.equal(plain.weight, quantized.dequantized())


def test_layers_are_what_hqq_makes_of_the_weights(embedded_folder: Path, quantized_folder: Path) -> None:
    plain, quantized = load(embedded_folder), load(quantized_folder, dtype=torch.bfloat16)
    for name in ("transformer", "text_encoder_2"):
        layers = quantized_layers(getattr(quantized, name))
        # All in the blocks that are wide enough, none outside of them.
        expected = {
            layer
            for layer, module in getattr(plain, name).named_modules()
            if type(module) is torch.nn.Linear and "block" in layer and module.in_features % 64 == 0
        }
        assert set(layers) == expected
        for layer in sorted(layers)[::5]:
            again = quantize_weight(getattr(plain, name).get_submodule(layer).weight.detach(), optimized=True)
            for part in ("qweight", "scale", "zero"):
                assert torch.equal(getattr(layers[layer], part), getattr(again, part))


def test_all_else_is_the_source_in_bfloat16(embedded_folder: Path, quantized_folder: Path) -> None:
    for name in ("transformer", "text_encoder_2"):
        before = {
            tensor: value
            for file in plain_weight_files(embedded_folder / name)
            for tensor, value in tensors_of(file.path).items()
        }
        after = {}
        for path in (quantized_folder / name).glob("*.safetensors"):
            after |= tensors_of(path)
        kept = {tensor for tensor in after if tensor in before}
        assert len(kept) > 5
        for tensor in kept:
            assert torch.equal(after[tensor], before[tensor].to(torch.bfloat16))
        lost = before.keys() - kept - {"encoder.embed_tokens.weight"}
        assert {tensor.removesuffix(".weight") for tensor in lost} == {
            tensor.removesuffix(".qweight") for tensor in after if tensor.endswith(".qweight")
        }


def test_the_manifest_lists_every_file_but_the_report(embedded_folder: Path, quantized_folder: Path) -> None:
    manifest = read_manifest(quantized_folder)
    assert manifest is not None
    assert manifest.quantization is not None
    assert "hqq 0." in manifest.quantization.tool
    unlisted = contents(quantized_folder).keys() - manifest.files.keys()
    assert unlisted == {MANIFEST_NAME, "quantization-report.json"}
    for path, entry in manifest.files.items():
        assert file_entry(quantized_folder / path) == entry
    for part in ("vae", "text_encoder", "tokenizer", "tokenizer_2", "scheduler"):
        assert contents(quantized_folder / part) == contents(embedded_folder / part)


def test_the_report_has_the_error_of_each_layer(quantized_folder: Path) -> None:
    report = json.loads((quantized_folder / "quantization-report.json").read_text())
    pipeline = load(quantized_folder)
    for part in report["components"]:
        assert part["errors"].keys() == quantized_layers(getattr(pipeline, part["component"])).keys()
        assert part["worst_error"] == part["errors"][part["worst_layer"]] == max(part["errors"].values())
        assert 0.03 < part["mean_error"] <= part["worst_error"] < 0.12
        assert part["size_bytes"] < 0.5 * part["plain_size_bytes"]
        # This model is so small that the headers count.
        assert 4.5 < part["bits_per_weight"] < 8


def test_what_it_prints(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:2]] == ["transformer", "text_encoder_2"]
    error = re.search(r"52 layers, relative error (\d+\.\d+)% on average", printed[0])
    assert error is not None
    assert 3 < float(error[1]) < 12
    assert printed[2].endswith(f"next: FLUX_WORKER_MODEL_DIR={tmp_path / 'made'} make serve")
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert manifest.quantization is not None
    assert manifest.quantization.tool.endswith("not optimized")


# --- Sources of all kinds ----------------------------------------------------------------------


def block_files(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in contents(folder).items()
        if name.split("/")[0] in ("transformer", "text_encoder_2")
    }


def test_shards_and_other_names_give_the_same_bytes(
    source: Path, quantized_folder: Path, tmp_path: Path
) -> None:
    for name in ("transformer", "text_encoder_2"):
        shard(source / name)
    assert quantize(source, tmp_path / "made") == DONE
    assert block_files(tmp_path / "made") == block_files(quantized_folder)


def test_t5_s_embedding_under_its_other_name(source: Path, tmp_path: Path) -> None:
    file = weights(source / "text_encoder_2")
    tensors = tensors_of(file)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
    save_file(tensors, file, {"format": "pt"})
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    rest = tensors_of(tmp_path / "made" / "text_encoder_2" / "rest.safetensors")
    assert torch.equal(rest["shared.weight"], tensors["encoder.embed_tokens.weight"].to(torch.bfloat16))
    load(tmp_path / "made")


def test_source_and_revision_come_from_the_source_s_manifest(source: Path, tmp_path: Path) -> None:
    assert quantize(source, tmp_path / "unsigned", "--fast") == DONE
    sign(source)
    assert quantize(source, tmp_path / "made", "--fast") == DONE
    made, unknown = read_manifest(tmp_path / "made"), read_manifest(tmp_path / "unsigned")
    assert made is not None
    assert unknown is not None
    assert (made.source, made.revision) == ("someone/model", "abc")
    assert (unknown.source, unknown.revision) == (source.name, "unknown")


def test_a_source_that_is_not_what_its_manifest_says(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(source)
    with weights(source / "transformer").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert quantize(source, tmp_path / "made") == BAD
    assert weights(source / "transformer").name in capsys.readouterr().err


def test_whoever_may_read_the_folder_may_read_its_files(quantized_folder: Path) -> None:
    for file in (file for file in quantized_folder.rglob("*") if file.is_file()):
        assert file.stat().st_mode & 0o777 == file.parent.stat().st_mode & 0o666, file


def test_the_files_say_what_they_are(quantized_folder: Path) -> None:
    layout = read_header(quantized_folder / "transformer" / "block-002.safetensors").layout
    assert layout is not None
    assert (layout.component, layout.block) == ("transformer", "single_transformer_blocks.0")
    with safe_open(quantized_folder / "transformer" / "block-002.safetensors", framework="pt") as opened:
        assert list(opened.metadata()) == ["flux-server-4bit"], "their order would not always be the same"


def test_run_from_a_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(metadata, "version", not_installed)
        patched.setattr(target, "hqq_version", lambda: "0.2.8")
        assert target.quantization(optimized=True).tool == "flux-server from source, hqq 0.2.8"
