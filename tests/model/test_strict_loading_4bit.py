"""4-bit model folders that are broken or changed: each is refused by name."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import (
    change,
    refusal,
    sign,
    tensors_of,
    weights,
)
from safetensors.torch import save_file

from gpu_worker.block_layout import METADATA_KEY
from gpu_worker.engines.weight_files import read_header
from gpu_worker.manifest import MANIFEST_NAME

# --- 4-bit folders that are wrong --------------------------------------------------------------


LAYER = "transformer_blocks.0.attn.to_q"


def relayout(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit what a 4-bit file says of itself."""
    layout = read_header(file).layout
    assert layout is not None
    content = layout.model_dump()
    edit(content)
    save_file(tensors_of(file), file, {METADATA_KEY: json.dumps(content)})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop(f"{LAYER}.scale"), f"{LAYER}.scale missing"),
        (lambda tensors: tensors.pop(f"{LAYER}.qweight"), f"{LAYER}.qweight missing"),
        (lambda tensors: tensors.pop(f"{LAYER}.bias"), f"{LAYER}.bias missing"),
        (
            lambda tensors: tensors.update({f"{LAYER}.weight": torch.ones(64, 64)}),
            f"{LAYER}.weight unexpected",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.zero": torch.ones(64, 2, 1)}),
            f"{LAYER}.zero of another shape than expected",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.qweight": torch.ones(64, 1, 32)}),
            f"{LAYER}.qweight of a type that is not expected",
        ),
        (
            lambda tensors: tensors.update({f"{LAYER}.scale": torch.ones(64, 1, 1, dtype=torch.uint8)}),
            f"{LAYER}.scale of a type that is not expected",
        ),
    ],
)
def test_tensors_must_be_those_of_the_layout(
    quantized: Path, edit: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    change(quantized / "transformer" / "block-000.safetensors", edit)
    sign(quantized)
    assert said in refusal(quantized)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda layout: layout.update(format=2), "not a 4-bit file of this version: format"),
        (lambda layout: layout.update(packing="rows"), "packing"),
        (lambda layout: layout.update(group_size=128), "group_size"),
        (lambda layout: layout.update(more=1), "more"),
        (lambda layout: layout["layers"].update({"x": {"out_features": -1}}), "layers.x"),
        (lambda layout: layout.update(component="text_encoder_2"), "belongs to text_encoder_2"),
        (lambda layout: layout["layers"].pop(LAYER), f"{LAYER}.weight missing"),
        (
            lambda layout: layout["layers"].update({"proj_out": layout["layers"][LAYER]}),
            "proj_out cannot be in 4 bits",
        ),
        (
            lambda layout: layout["layers"][LAYER].update(in_features=64),
            f"{LAYER} cannot be in 4 bits, or not in this shape",
        ),
    ],
)
def test_what_a_file_says_of_itself_must_fit(
    quantized: Path, edit: Callable[[dict[str, Any]], object], said: str
) -> None:
    relayout(quantized / "transformer" / "block-000.safetensors", edit)
    sign(quantized)
    assert said in refusal(quantized)


def test_a_block_that_is_there_twice(quantized: Path) -> None:
    blocks = quantized / "transformer"
    shutil.copy(blocks / "block-000.safetensors", blocks / "block-100.safetensors")
    sign(quantized)
    assert "is both in block-000.safetensors and in block-100.safetensors" in refusal(quantized)


def test_a_block_that_is_missing(quantized: Path) -> None:
    (quantized / "transformer" / "block-003.safetensors").unlink()
    sign(quantized)
    assert re.search(r"single_transformer_blocks\.1\.\S+ and \d+ more missing", refusal(quantized))


def test_a_plain_file_among_them(quantized: Path, plain: Path) -> None:
    shutil.copy(weights(plain / "vae"), quantized / "transformer" / "block-000.safetensors")
    sign(quantized)
    assert "block-000.safetensors: not made by" in refusal(quantized)


def test_without_a_manifest_four_bits_are_unfinished(quantized: Path) -> None:
    (quantized / MANIFEST_NAME).unlink()
    assert "quantize` finishes what it has begun" in refusal(quantized)


def test_a_plain_folder_that_is_said_to_be_in_four_bits(plain: Path, quantized: Path) -> None:
    shutil.copy(quantized / MANIFEST_NAME, plain / MANIFEST_NAME)
    sign(plain)
    assert "not made by `python -m gpu_worker quantize`" in refusal(plain)


@pytest.mark.parametrize("path", ["transformer/block-001.safetensors", "vae/config.json", "model_index.json"])
def test_a_file_with_another_digest(quantized: Path, path: str) -> None:
    content = bytearray((quantized / path).read_bytes())
    content[-2] ^= 0x20
    (quantized / path).write_bytes(content)
    assert path in refusal(quantized)


def test_a_listed_file_that_is_missing(quantized: Path) -> None:
    (quantized / "tokenizer_2" / "tokenizer_config.json").unlink()
    assert "tokenizer_2/tokenizer_config.json" in refusal(quantized)
