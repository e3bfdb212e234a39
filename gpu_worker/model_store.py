"""Which engine a worker runs, and whether the folder that it would run from can be a FLUX model.

Without torch: the worker process decides, the engine process gets the decision.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, assert_never

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, FileEntry, Manifest, read_manifest

UNFINISHED_FOLDER: Final = ".unfinished"
"""In a model folder that is being fetched: what is not whole yet."""

EngineName = Literal["auto", "flux", "embedded", "fake"]

_PIPELINE: Final = "FluxPipeline"
_WEIGHTED: Final = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "text_encoder_2": ("T5EncoderModel",),
}
_PLAIN: Final = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("T5TokenizerFast", "T5Tokenizer"),
    "scheduler": ("FlowMatchEulerDiscreteScheduler",),
}
_ESSENTIAL: Final = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("spiece.model",)),
    "scheduler": (("scheduler_config.json",),),
}
"""One of these sets of files makes the component: without a vocabulary the libraries make an empty one."""
_QUANTIZED_HERE: Final = (
    "bf16, fp16 or fp32 is expected, or 4-bit weights that `python -m gpu_worker quantize` makes of them;"
    " HighCWu/FLUX.1-dev-4bit, which mixes NF4 and HQQ, cannot be read"
)
EMBEDDED_FOLDER: Final = Path(__file__).with_name("embedded_model")
"""Comes with the worker; its README.md says what it draws, and how well."""
_SMALL: Final = 'embedded model: it draws simple shapes, like "a red heart at the top left"'


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxFolder:
    """A prepared folder with a FLUX pipeline in diffusers' layout."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The small model that comes with the worker."""

    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """No model at all."""

    step_s: float
    load_s: float
    faults: bool
    gate: Path | None = None
    png_bytes: int = 0


EngineChoice = FluxFolder | Embedded | Fake


def choose_engine(engine: EngineName, *, model_dir: Path, fake: Fake) -> EngineChoice:
    """The engine that these settings mean.

    Raises:
        ModelUnusable: the model folder is asked for, or there, and cannot be used; the text says why.
    """
    match engine:
        case "fake":
            return fake
        case "embedded":
            return Embedded(warning=_SMALL)
        case "flux":
            check_flux_folder(model_dir)
            return FluxFolder(path=model_dir.absolute())
        case "auto":
            return _choose_for(model_dir)
        case _:
            assert_never(engine)


def _choose_for(model_dir: Path) -> EngineChoice:
    index = model_dir / "model_index.json"
    if _is_unfinished(model_dir) or (index.is_file() and _read_object(index).get("_class_name") == _PIPELINE):
        # A FLUX folder that is incomplete is an accident: worth an error, not a silent other model.
        check_flux_folder(model_dir)
        return FluxFolder(path=model_dir.absolute())
    return Embedded(warning=f"{_SMALL}; there is no FLUX model in {model_dir.absolute()}")


def check_flux_folder(folder: Path) -> None:
    """Raise `ModelUnusable`, with all that is wrong, unless this looks like a whole FLUX pipeline.

    With a manifest: unless its files are there in their sizes, and no others that would be read.
    The tensors themselves are checked when they are loaded.
    """
    index = _read_index(folder)
    manifest = read_manifest(folder)
    problems = [
        problem
        for name in (*_WEIGHTED, *_PLAIN)
        for problem in _component_problems(folder, name, index, manifest)
    ]
    if manifest is not None:
        problems += [*_listed_problems(folder, manifest), *_unlisted_problems(folder, manifest)]
    if problems:
        raise ModelUnusable(f"{folder.absolute()}: {'; '.join(problems)}")


def check_embedded_folder() -> None:
    """Raise `ModelUnusable` unless the small model that comes with the worker is whole."""
    try:
        check_flux_folder(EMBEDDED_FOLDER)
    except ModelUnusable as error:
        raise ModelUnusable(
            f"the embedded model comes with the worker and is damaged, install the worker again: {error}"
        ) from error


def check_plain_folder(folder: Path) -> Manifest | None:
    """The same, and its manifest if there is one; also `ModelUnusable` if its weights are in 4 bits."""
    check_flux_folder(folder)
    manifest = read_manifest(folder)
    if manifest is not None and manifest.quantization is not None:
        raise ModelUnusable(f"{folder.absolute()}: is in 4 bits already; the plain model is needed")
    return manifest


def _read_index(folder: Path) -> dict[str, object]:
    if not folder.is_dir():
        raise ModelUnusable(
            f"{folder.absolute()}: no such folder; a FLUX model in diffusers' layout is expected,"
            " as `python -m gpu_worker prefetch` makes one"
        )
    if _is_unfinished(folder):
        raise ModelUnusable(
            f"{folder.absolute()}: half-finished; to go on: python -m gpu_worker prefetch --target {folder}"
        )
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ModelUnusable(
            f"{folder.absolute()}: no model_index.json; a FLUX model in diffusers' layout is expected"
        )
    index = _read_object(index_file)
    if index.get("_class_name") != _PIPELINE:
        raise ModelUnusable(
            f"{index_file.absolute()}: _class_name is {index.get('_class_name')!r}, not {_PIPELINE!r}"
        )
    return index


def _is_unfinished(folder: Path) -> bool:
    return (folder / UNFINISHED_FOLDER).is_dir() and not (folder / MANIFEST_NAME).exists()


def component_files(folder: Path) -> list[str]:
    """All files that the libraries may read, by their path in the folder: hidden ones are not."""
    found = (file for name in (*_WEIGHTED, *_PLAIN) for file in (folder / name).rglob("*") if file.is_file())
    paths = sorted(file.relative_to(folder) for file in found)
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _listed_problems(folder: Path, manifest: Manifest) -> list[str]:
    return [
        problem for path, entry in manifest.files.items() if (problem := _size_problem(folder, path, entry))
    ]


def _size_problem(folder: Path, path: str, listed: FileEntry) -> str:
    try:
        size_bytes = (folder / path).stat().st_size
    except OSError:
        return f"{path} is missing, {MANIFEST_NAME} lists it"
    if size_bytes != listed.size_bytes:
        return f"{path} has {size_bytes} bytes, {listed.size_bytes} are listed in {MANIFEST_NAME}"
    return ""


def _unlisted_problems(folder: Path, manifest: Manifest) -> list[str]:
    read = ["model_index.json", *component_files(folder)]
    return [f"{path} is not listed in {MANIFEST_NAME}" for path in read if path not in manifest.files]


def _component_problems(
    folder: Path, name: str, index: dict[str, object], manifest: Manifest | None
) -> list[str]:
    allowed = (_WEIGHTED | _PLAIN)[name]
    match index.get(name):
        case [_, str(found)] if found in allowed:
            pass
        case found:
            return [f"model_index.json: {name} is {found!r}, expected {' or '.join(allowed)}"]
    if not (folder / name).is_dir():
        return [f"folder {name} is missing"]
    if name in _PLAIN:
        return _plain_problems(folder / name)
    quantization = None if manifest is None else manifest.quantization
    ours = quantization is not None and name in quantization.components
    return _weight_problems(folder / name, quantized_by_us=ours)


def _plain_problems(component: Path) -> list[str]:
    choices = _ESSENTIAL[component.name]
    if any(all((component / file).is_file() for file in files) for files in choices):
        return []
    expected = " or ".join(" with ".join(files) for files in choices)
    return [f"folder {component.name} has no {expected}"]


def _weight_problems(component: Path, *, quantized_by_us: bool) -> list[str]:
    config = component / "config.json"
    if not config.is_file():
        return [f"{component.name}/config.json is missing"]
    if "quantization_config" in _read_object(config) and not quantized_by_us:
        return [f"{component.name} is quantized in a way that is not supported; {_QUANTIZED_HERE}"]
    if any(component.glob("*.safetensors")):
        return []
    pickled = sorted(file.name for file in component.glob("*.bin"))
    hint = f"; {pickled[0]} is not read, as loading it would execute code" if pickled else ""
    return [f"folder {component.name} has no .safetensors file{hint}"]


def _read_object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelUnusable(f"{file.absolute()}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelUnusable(f"{file.absolute()}: a JSON object is expected")
    return content
