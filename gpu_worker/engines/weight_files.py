"""The safetensors files of one component: which they are, and what they say that they hold.

Only headers are read here. Nothing in them is executed, and no name leads out of the folder.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from safetensors import SafetensorError, safe_open

from gpu_worker.block_layout import BlockLayout, read_layout
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.error_text import first_line

_STEMS: Final = ("diffusion_pytorch_model", "model")
"""diffusers' and transformers' names; others, `model.fp16` for example, are variants."""
BLOCK_PREFIX: Final = "block-"
REST_FILE: Final = "rest.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    dtype: str
    """As safetensors writes it: F32, F16, BF16, U8, ..."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    path: Path
    size_bytes: int
    tensors: dict[str, StoredTensor]
    layout: BlockLayout | None
    """None for a plain file."""


def plain_weight_files(component: Path) -> list[WeightFile]:
    """The component's single file, or the shards of its index.

    Raises:
        ModelUnusable: none or several could be meant, or an index does not fit its shards; names the file.
    """
    there = sorted(file.name for file in component.glob("*.safetensors"))
    indices = [name for stem in _STEMS if (component / (name := f"{stem}.safetensors.index.json")).is_file()]
    singles = [f"{stem}.safetensors" for stem in _STEMS if f"{stem}.safetensors" in there]
    match [*indices, *singles]:
        case []:
            raise ModelUnusable(f"{component}: {_nothing_plain(there)}")
        case [str(one)]:
            pass
        case several:
            raise ModelUnusable(f"{component}: {' and '.join(several)}: only one of them can be meant")
    weight_map = _read_index(component / one) if indices else None
    names = sorted(set(weight_map.values())) if weight_map is not None else [one]
    if strangers := sorted(set(there) - set(names)):
        raise ModelUnusable(f"{component / strangers[0]}: does not belong to {one}")
    files = [read_header(component / name) for name in names]
    if quantized := [file.path for file in files if file.layout is not None]:
        raise ModelUnusable(f"{quantized[0]}: a 4-bit file under the name of a plain one")
    if weight_map is not None:
        _check_index(component / one, weight_map, files)
    return files


def quantized_weight_files(component: Path) -> list[WeightFile]:
    """All files of a 4-bit component.

    Raises:
        ModelUnusable: one is of another kind, or of another component; names the file.
    """
    files = [read_header(path) for path in sorted(component.glob("*.safetensors"))]
    if not files:
        raise ModelUnusable(f"{component}: no 4-bit file")
    for file in files:
        if file.layout is None:
            raise ModelUnusable(f"{file.path}: not made by `python -m gpu_worker quantize`")
        if file.layout.component != component.name:
            raise ModelUnusable(f"{file.path}: belongs to {file.layout.component}")
    return files


def stored_twice(files: Sequence[WeightFile]) -> list[str]:
    """What is wrong, for each tensor that is in two of the files."""
    first: dict[str, Path] = {}
    problems = []
    for file in files:
        for name in file.tensors:
            if name in first:
                problems.append(f"{name} is both in {first[name].name} and in {file.path.name}")
            first.setdefault(name, file.path)
    return problems


def _nothing_plain(there: list[str]) -> str:
    if REST_FILE in there or any(name.startswith(BLOCK_PREFIX) for name in there):
        return (
            "4-bit files without a manifest that lists them: copy flux-server.json along, or, if it was never"
            " finished, `python -m gpu_worker quantize` finishes what it has begun"
        )
    found = f"; found {there[0]}" if there else ""
    return f"neither {' nor '.join(f'{stem}.safetensors' for stem in _STEMS)}, nor an index of shards{found}"


def _read_index(file: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(file.read_bytes())["weight_map"]
        items = list(weight_map.items())
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise ModelUnusable(f"{file}: cannot be read as an index: {first_line(error)}") from error
    for name, shard in items:
        if not isinstance(shard, str) or not _is_shard_name(shard):
            raise ModelUnusable(f"{file}: {name} is said to be in {shard!r}: no name of a shard beside it")
        if not (file.parent / shard).is_file():
            raise ModelUnusable(f"{file}: {shard} is missing")
    if not items:
        raise ModelUnusable(f"{file}: lists no tensors")
    return dict(items)


def _is_shard_name(name: str) -> bool:
    return PurePosixPath(name).name == name and "\\" not in name and name.endswith(".safetensors")


def _check_index(index: Path, weight_map: dict[str, str], files: Sequence[WeightFile]) -> None:
    problems = stored_twice(files)
    held = {name: file.path.name for file in files for name in file.tensors}
    for name in sorted(weight_map.keys() | held.keys()):
        listed, found = weight_map.get(name), held.get(name)
        if listed is None:
            problems.append(f"{name} in {found} is not listed")
        elif found is None:
            problems.append(f"{name} is not in {listed}")
        elif listed != found and not problems:
            problems.append(f"{name} is in {found}, not in {listed}")
    if problems:
        others = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ModelUnusable(f"{index}: {problems[0]}{others}")


def read_header(file: Path) -> WeightFile:
    """Raises `ModelUnusable`: it cannot be read; names the file."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            tensors = {
                name: StoredTensor(dtype=part.get_dtype(), shape=tuple(part.get_shape()))
                for name, part in slices.items()
            }
            layout = read_layout(opened.metadata())
        size_bytes = file.stat().st_size
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelUnusable(f"{file}: cannot be read: {first_line(error)}") from error
    except ModelUnusable as error:
        raise ModelUnusable(f"{file}: {error}") from error
    return WeightFile(path=file, size_bytes=size_bytes, tensors=tensors, layout=layout)
