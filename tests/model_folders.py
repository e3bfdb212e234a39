"""Model folders in tests: read, changed, signed, loaded and quantized."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from gpu_worker.block_layout import METADATA_KEY
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.flux_loading import load_pipeline
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.quantized_linear import QuantizedLinear
from gpu_worker.engines.weight_files import read_header
from gpu_worker.manifest import MANIFEST_NAME, Manifest, file_entry, read_manifest, write_manifest
from gpu_worker.quantize import main
from gpu_worker.quantizer import block_file
from gpu_worker.quantizer.hqq_layer import quantize_weight

CPU: Final = torch.device("cpu")
DONE, BAD, INTERRUPTED = 0, 78, 130


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def quantize(source: Path, made: Path, *more: str) -> int:
    return main(["--source", str(source), "--target", str(made), "--device", "cpu", *more])


def weights(component: Path) -> Path:
    return next(component.glob("*.safetensors"))


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """No views of the file, which is going to be written over."""
    return load_tensors(file.read_bytes())


def shard(component: Path) -> Path:
    """Split the component's file as large ones are; the index."""
    whole, file = tensors_of(weights(component)), weights(component)
    names, weight_map = sorted(whole), dict[str, str]()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard_name = f"{file.stem}-{number:05}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, component / shard_name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard_name)
    file.unlink()
    index = component / f"{file.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@contextmanager
def failing_after(calls: int, error: BaseException) -> Iterator[list[int]]:
    """Layers can be quantized so many times; then this is raised. Counts the calls."""
    counted = [0]

    def counting(weight: torch.Tensor, *, optimized: bool) -> QuantizedLinear:
        counted[0] += 1
        if counted[0] > calls:
            raise error
        return quantize_weight(weight, optimized=optimized)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block_file, "quantize_weight", counting)
        yield counted


def load(folder: Path, *, dtype: torch.dtype = torch.float32, expand: bool = False) -> Any:
    how = LoadPlan(device=CPU, t5_device=CPU, dtype=dtype, t5_dtype=dtype, expand=expand)
    return load_pipeline(folder, how, lambda _what, _percent: None)


def change(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Edit the tensors of a file that keeps its metadata."""
    tensors, layout = tensors_of(file), read_header(file).layout
    edit(tensors)
    metadata = {"format": "pt"} if layout is None else {METADATA_KEY: layout.model_dump_json()}
    save_file(tensors, file, metadata)


def sign(folder: Path) -> None:
    """Let the folder's manifest, a new one if it has none, list the files as they are."""
    manifest = read_manifest(folder) or Manifest(source="someone/model", revision="abc", files={})
    paths = (file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST_NAME)
    files = {file.relative_to(folder).as_posix(): file_entry(file) for file in paths}
    write_manifest(folder, manifest.model_copy(update={"files": files}))


def refusal(folder: Path) -> str:
    """Why the folder is not loaded."""
    with pytest.raises(ModelUnusable) as refused:
        load(folder)
    assert str(folder) in str(refused.value)
    return str(refused.value)
