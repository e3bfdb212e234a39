"""Sources, targets, settings and hosts with which nothing can be quantized."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_folders import (
    BAD,
    DONE,
    failing_after,
    quantize,
    tensors_of,
    weights,
)
from safetensors.torch import save_file

from gpu_worker.manifest import MANIFEST_NAME
from gpu_worker.quantize import main
from gpu_worker.quantizer import target

# --- What cannot be done -----------------------------------------------------------------------


def plant_nan(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    tensors["single_transformer_blocks.1.proj_mlp.weight"][3, 3] = float("nan")
    save_file(tensors, file, {"format": "pt"})


def lose_a_tensor(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    del tensors["proj_out.bias"]
    save_file(tensors, file, {"format": "pt"})


def make_it_integers(folder: Path) -> None:
    file = weights(folder / "transformer")
    tensors = tensors_of(file)
    tensors["proj_out.bias"] = tensors["proj_out.bias"].to(torch.int8)
    save_file(tensors, file, {"format": "pt"})


def claim_a_quantization(folder: Path) -> None:
    config = folder / "text_encoder_2" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "hqq"}})
    )


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (plant_nan, "single_transformer_blocks.1.proj_mlp holds NaN"),
        (lose_a_tensor, "proj_out.bias missing"),
        (make_it_integers, "proj_out.bias of a type"),
        (claim_a_quantization, "text_encoder_2 is quantized"),
        (lambda folder: shutil.rmtree(folder / "vae"), "folder vae is missing"),
        (lambda folder: (folder / MANIFEST_NAME).write_text("{}"), "not a manifest"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_sources_that_are_refused(
    source: Path,
    tmp_path: Path,
    damage: Callable[[Path], object],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(source)
    assert quantize(source, tmp_path / "made", "--fast") == BAD
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made" / MANIFEST_NAME).exists()


def test_what_is_in_four_bits_already(
    quantized_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(quantized_folder, tmp_path / "made") == BAD
    assert "in 4 bits already" in capsys.readouterr().err


def test_targets_that_are_refused(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    for made, said in [
        (tmp_path / "file", "is a file"),
        (tmp_path / "photos", "holds cat.png"),
        (tmp_path / "file" / "below", "NotADirectoryError"),
        (embedded_folder, "apart from the source"),
        (embedded_folder / "made", "apart from the source"),
        (embedded_folder.parent, "apart from the source"),
    ]:
        assert quantize(embedded_folder, made, "--fast") == BAD
        printed = capsys.readouterr().err
        assert said in printed
        assert "Traceback" not in printed
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_two_at_once(embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with target.claimed(tmp_path / "made"):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "another process is quantizing into it" in capsys.readouterr().err
    assert quantize(embedded_folder, tmp_path / "made", "--fast") == DONE


def test_a_disk_that_is_too_small_is_known_before(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=60_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with failing_after(0, AssertionError()):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "GB are needed on the disk, 0.1 GB are free" in capsys.readouterr().err


def test_a_disk_that_is_full_in_the_middle(
    embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with failing_after(20, OSError(errno.ENOSPC, "No space left on device")):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == BAD
    assert "the disk is full: make room, and run it again" in capsys.readouterr().err
    assert quantize(embedded_folder, tmp_path / "made", "--fast") == DONE


def test_too_little_memory(embedded_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with failing_after(3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")):
        assert quantize(embedded_folder, tmp_path / "made", "--fast") == 69
    assert "out of memory on cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "gpu"], "--device (FLUX_QUANTIZE_DEVICE): 'gpu'"),
        (["--device", "cuda:99"], "device cuda:99: torch sees"),
        (["--threads", "-1"], "--threads (FLUX_QUANTIZE_THREADS)"),
    ],
)
def test_bad_settings(
    embedded_folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["--source", str(embedded_folder), *arguments])
    except SystemExit as ended:
        status = ended.code
    assert status == BAD
    assert said in capsys.readouterr().err


def test_without_hqq(
    embedded_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_worker.quantizer.hqq_layer.hqq_version", lambda: None)
    assert main(["--source", str(embedded_folder)]) == BAD
    assert "DISABLE_CUDA=1 pip install -r requirements/quantize.txt" in capsys.readouterr().err
