"""A model's footprint, read without its weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.footprint import read_footprint


@pytest.fixture
def folder(embedded_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded_folder, tmp_path / "FLUX.1-dev"))


def weights(folder: Path, part: str) -> Path:
    return next((folder / part).glob("*.safetensors"))


def test_of_a_plain_folder(folder: Path) -> None:
    footprint = read_footprint(folder)
    for part, name in (("transformer", "transformer"), ("t5", "text_encoder_2"), ("vae", "vae")):
        component = getattr(footprint, part)
        stored = sum(tensor.numel() for tensor in load_file(weights(folder, name)).values())
        assert component.parameters == stored
        assert (
            component.weight_bytes(2, expanded=False)
            == component.weight_bytes(2, expanded=True)
            == 2 * stored
        )
        assert not component.is_packed
    assert footprint.transformer.width == 128 / 3072
    assert footprint.t5.width == 128 / 4096
    assert footprint.vae.width == 16 / 256
    assert not footprint.is_packed


def packed_layer(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    groups = rows * columns // 64
    return {
        f"{name}.qweight": torch.zeros(rows * columns // 2, dtype=torch.uint8),
        f"{name}.scale": torch.zeros(groups, 1, dtype=torch.bfloat16),
        f"{name}.zero": torch.zeros(groups, 1, dtype=torch.bfloat16),
        f"{name}.bias": torch.zeros(rows, dtype=torch.bfloat16),
    }


def test_of_4_bit_files(folder: Path) -> None:
    weights(folder, "transformer").unlink()
    save_file(
        packed_layer("a", 128, 64) | packed_layer("b", 64, 64), folder / "transformer" / "block-0.safetensors"
    )
    save_file({"rest": torch.zeros(10)}, folder / "transformer" / "rest.safetensors")
    footprint = read_footprint(folder)
    transformer = footprint.transformer
    assert footprint.is_packed
    assert transformer.parameters == 192 * 64 + 192 + 10
    assert transformer.largest_packed == 128 * 64
    assert transformer.weight_bytes(2, expanded=True) == 2 * transformer.parameters
    assert transformer.weight_bytes(2, expanded=False) == 192 * 32 + 2 * (2 * 192 + 192 + 10)
    assert transformer.weight_bytes(4, expanded=False) == 192 * 32 + 4 * (2 * 192 + 192 + 10)


def test_t5_s_embedding_counts_once_under_two_names(folder: Path) -> None:
    before = read_footprint(folder).t5.parameters
    file = weights(folder, "text_encoder_2")
    whole = load_file(file)
    shared = whole["shared.weight"] if "shared.weight" in whole else whole["encoder.embed_tokens.weight"]
    both = whole | {"shared.weight": shared, "encoder.embed_tokens.weight": shared.clone()}
    save_file(both, file)
    assert read_footprint(folder).t5.parameters == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"\xff\xff\xff\xff",
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}     ',
        (60).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}    '
        + bytes(16),
        (60).to_bytes(8, "little")
        + b'{"a":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}     '
        + bytes(16),
    ],
)
def test_a_broken_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "vae" / "broken.safetensors").write_bytes(content)
    with pytest.raises(ModelUnusable) as refused:
        read_footprint(folder)
    assert str(refused.value).startswith(f"{folder / 'vae' / 'broken.safetensors'}: cannot be read: ")


@pytest.mark.parametrize("content", ["[]", "{}", '{"d_model": "64"}', '{"d_model": -1}'])
def test_a_strange_configuration_is_left_to_the_loading(folder: Path, content: str) -> None:
    (folder / "text_encoder_2" / "config.json").write_text(content)
    assert read_footprint(folder).t5.width == 1.0


def test_an_unreadable_configuration_is_named(folder: Path) -> None:
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(ModelUnusable, match=r"vae/config.json: cannot be read"):
        read_footprint(folder)
    for number in range(2, 4):
        config = json.dumps({"block_out_channels": [8] * number})
        (folder / "vae" / "config.json").write_text(config)
        assert read_footprint(folder).vae.width == 8 / 256
