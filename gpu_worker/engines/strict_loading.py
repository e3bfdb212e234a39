"""Fills a model, built without weights, from safetensors files: every tensor, and nothing else.

Tensor by tensor from the file to its device, so that never more than the model and one layer are in memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import nn

from gpu_worker.block_layout import GROUP_SIZE
from gpu_worker.engines.quantized_linear import QuantizedLinear
from gpu_worker.engines.weight_files import WeightFile, stored_twice

_FLOATING: Final = frozenset({"F32", "F16", "BF16"})
_PACKED: Final = frozenset({"U8"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    device: torch.device
    dtype: torch.dtype
    expand: bool
    """4-bit layers become plain ones, each as soon as it is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    shape: tuple[int, ...]
    dtypes: frozenset[str] = _FLOATING


def faults(
    model: nn.Module,
    files: Sequence[WeightFile],
    second_names: Mapping[str, str],
    quantizable: Mapping[str, nn.Linear],
) -> list[str]:
    """What is wrong with these files for this model, one line each; empty if each tensor is as expected.

    `second_names`: of tensors with two names, the one that may be missing, and what it may be stored under
    instead. `quantizable`: the layers that may be in 4 bits.
    """
    found = {name: tensor for file in files for name, tensor in file.tensors.items()}
    foreign = _foreign(files, quantizable)
    wanted = _wanted(model, _quantized_shapes(files).keys() - set(foreign), second_names)
    renamed = {second: first for second, first in second_names.items() if second in found}
    allowed = wanted | {second: wanted[first] for second, first in renamed.items() if first in wanted}
    common = found.keys() & allowed.keys()
    reshaped = (name for name in common if found[name].shape != allowed[name].shape)
    retyped = (name for name in common if found[name].dtype not in allowed[name].dtypes)
    return [
        *listed("cannot be in 4 bits, or not in this shape", foreign),
        *listed("missing", wanted.keys() - found.keys() - set(renamed.values())),
        *listed("unexpected", found.keys() - allowed.keys()),
        *listed("of another shape than expected", reshaped),
        *listed("of a type that is not expected", retyped),
        *stored_twice(files)[:1],
    ]


def listed(fault: str, names: Iterable[str]) -> list[str]:
    """One line about these tensors, or none."""
    ordered = sorted(names)
    if not ordered:
        return []
    others = f" and {len(ordered) - 1} more" if len(ordered) > 1 else ""
    return [f"{ordered[0]}{others} {fault}"]


def fill(
    model: nn.Module,
    files: Sequence[WeightFile],
    second_names: Mapping[str, str],
    to: Destination,
    on_bytes: Callable[[int], None],
) -> None:
    """Give the model all of its tensors; `files` have no faults. `on_bytes` gets the bytes of each tensor.

    Raises:
        ValueError: a tensor that has two names is stored with different values.
        SafetensorError, OSError, RuntimeError: of reading, or of the device.
    """
    for file in files:
        _fill_from(model, file, second_names, to, on_bytes)
    for second, first in second_names.items():
        _assign(model, second, model.get_parameter(first))
    # What is in no file: buffers that are computed when the model is built.
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(to.device))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if left := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise ValueError(f"{left[0]} was not loaded")


def _foreign(files: Sequence[WeightFile], quantizable: Mapping[str, nn.Linear]) -> list[str]:
    """The layers that are said to be in 4 bits, and cannot be."""
    return [
        name
        for name, shape in _quantized_shapes(files).items()
        if (linear := quantizable.get(name)) is None or (linear.out_features, linear.in_features) != shape
    ]


def _wanted(
    model: nn.Module, quantized: Iterable[str], second_names: Mapping[str, str]
) -> dict[str, _Wanted]:
    """By name, what the files must hold, given which layers are in 4 bits."""
    wanted = {
        name: _Wanted(shape=tuple(tensor.shape))
        for name, tensor in model.state_dict().items()
        if name not in second_names
    }
    for layer in quantized:
        out_features, in_features = wanted.pop(f"{layer}.weight").shape
        groups = in_features // GROUP_SIZE
        wanted[f"{layer}.qweight"] = _Wanted(shape=(out_features, groups, GROUP_SIZE // 2), dtypes=_PACKED)
        for part in ("scale", "zero"):
            wanted[f"{layer}.{part}"] = _Wanted(shape=(out_features, groups, 1))
    return wanted


def _quantized_shapes(files: Sequence[WeightFile]) -> dict[str, tuple[int, int]]:
    return {
        name: (layer.out_features, layer.in_features)
        for file in files
        if file.layout is not None
        for name, layer in file.layout.layers.items()
    }


def _fill_from(
    model: nn.Module,
    file: WeightFile,
    second_names: Mapping[str, str],
    to: Destination,
    on_bytes: Callable[[int], None],
) -> None:
    quantized = file.layout.layers if file.layout is not None else {}
    parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in quantized}
    with safe_open(file.path, framework="pt", device=str(to.device)) as opened:
        for name in opened.offset_keys():
            stored = opened.get_tensor(name)
            tensor = _owned(stored, to.dtype)
            on_bytes(stored.nbytes)
            del stored
            layer, _, part = name.rpartition(".")
            if layer not in parts:
                _assign(model, second_names.get(name, name), tensor)
                continue
            parts[layer][part] = tensor
            bias = model.get_submodule(layer).bias is not None
            if parts[layer].keys() == {"qweight", "scale", "zero", *(("bias",) if bias else ())}:
                _put_layer(model, layer, parts.pop(layer), expand=to.expand)


def _owned(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in this dtype, unless it is of packed codes; never a view of the file's mapping."""
    tensor = stored.to(dtype) if stored.is_floating_point() else stored
    return tensor.clone() if tensor is stored and stored.device.type == "cpu" else tensor


def _put_layer(model: nn.Module, name: str, parts: dict[str, torch.Tensor], *, expand: bool) -> None:
    layer = QuantizedLinear(parts["qweight"], parts["scale"], parts["zero"], parts.get("bias"))
    model.set_submodule(name, layer.expanded() if expand else layer, strict=True)


def _assign(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    before = module._parameters.get(leaf)
    if before is not None and not before.is_meta and before is not tensor and not torch.equal(before, tensor):
        raise ValueError(f"{name} is stored twice, with different values")
    module._parameters[leaf] = (
        tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    )
