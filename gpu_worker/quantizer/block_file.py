"""Makes the file of one block, or finds that an earlier run has made it."""

import hashlib
import math
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gpu_worker.block_layout import METADATA_KEY, BlockLayout, BlockOrigin, LayerLayout
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.flux_architecture import SECOND_NAMES
from gpu_worker.engines.weight_files import read_header
from gpu_worker.quantizer.hqq_layer import hqq_version, quantize_weight, relative_error
from gpu_worker.quantizer.source import TensorReader
from gpu_worker.quantizer.work import Piece

UNFINISHED_SUFFIX = ".unfinished"
_READ_AND_WRITE = 0o666


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    optimized: bool
    device: torch.device
    """Where it is computed."""


def make_block_file(
    piece: Piece, reader: TensorReader, folder: Path, method: Method, on_layer: Callable[[], None]
) -> BlockLayout:
    """The layout of the file, which is in the folder afterwards, whole; `on_layer` is called for each layer.

    In memory: the new tensors, and what hqq needs for one layer.

    Raises:
        ModelUnusable: a weight is not finite.
        OSError: of writing.
    """
    origin = BlockOrigin(
        source_sha256=_digest(piece, reader),
        optimized=method.optimized,
        hqq=hqq_version() or "",
        torch=torch.__version__,
    )
    file = folder / piece.path
    there = _finished(piece, file, origin)
    if there is not None:
        for _ in piece.layers:
            on_layer()
        return there
    tensors: dict[str, torch.Tensor] = {}
    layers: dict[str, LayerLayout] = {}
    for layer in piece.layers:
        layers[layer] = _quantize(layer, reader, method, tensors)
        on_layer()
    for name in piece.plain:
        kept = SECOND_NAMES[piece.component].get(name, name)
        tensors[kept] = _finite(name, reader.read(name)).to(torch.bfloat16, copy=True)
    layout = BlockLayout(component=piece.component, block=piece.block, layers=layers, origin=origin)
    _save(tensors, layout, file)
    return layout


def _digest(piece: Piece, reader: TensorReader) -> str:
    digest = hashlib.sha256()
    for name in piece.tensors:
        tensor = reader.read(name)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _finished(piece: Piece, file: Path, origin: BlockOrigin) -> BlockLayout | None:
    try:
        layout = read_header(file).layout if file.is_file() else None
    except ModelUnusable:
        return None
    if (
        layout is None
        or layout.origin != origin
        or (layout.component, layout.block)
        != (
            piece.component,
            piece.block,
        )
    ):
        return None
    return layout if layout.layers.keys() == set(piece.layers) else None


def _quantize(
    name: str, reader: TensorReader, method: Method, tensors: dict[str, torch.Tensor]
) -> LayerLayout:
    """Add the layer's new tensors to `tensors`."""
    weight = _finite(name, reader.read(f"{name}.weight").to(method.device))
    layer = quantize_weight(weight, optimized=method.optimized)
    tensors |= {f"{name}.{part}": getattr(layer, part).cpu() for part in ("qweight", "scale", "zero")}
    error = relative_error(layer, weight)
    if not math.isfinite(error):
        raise ModelUnusable(f"{name} cannot be quantized: its weights are too large")
    return LayerLayout(
        out_features=layer.out_features, in_features=layer.in_features, relative_error=round(error, 6)
    )


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise ModelUnusable(f"{name} holds NaN or infinity: this is no usable model")
    return tensor


def _save(tensors: dict[str, torch.Tensor], layout: BlockLayout, file: Path) -> None:
    """Whole or not at all."""
    unfinished = file.with_name(file.name + UNFINISHED_SUFFIX)
    try:
        # One key only: the order of several is not always the same.
        save_file(tensors, unfinished, {METADATA_KEY: layout.model_dump_json()})
    except SafetensorError as error:
        raise OSError(f"{unfinished}: {error}") from error
    # safetensors lets the owner alone read it; a worker may be another user, as the folder says.
    unfinished.chmod(stat.S_IMODE(file.parent.stat().st_mode) & _READ_AND_WRITE)
    sync(unfinished)
    unfinished.replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
