"""Which engine a worker runs, and whether the folder that it would run from can be a FLUX model.

Without torch: the worker process decides, the engine process gets the decision.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, assert_never

from gpu_worker.engines.engine import ModelUnusable

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
_ABSTRACT: Final = "embedded model: tiny and untrained, it draws abstract patterns"


@dataclass(frozen=True, slots=True, kw_only=True)
class FluxFolder:
    """A prepared folder with a FLUX pipeline in diffusers' layout."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The small model that the worker builds itself, kept in `cache_dir`."""

    cache_dir: Path
    warning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fake:
    """No model at all."""

    step_s: float
    load_s: float
    faults: bool
    gate: Path | None = None


EngineChoice = FluxFolder | Embedded | Fake


def choose_engine(engine: EngineName, *, model_dir: Path, cache_dir: Path, fake: Fake) -> EngineChoice:
    """The engine that these settings mean.

    Raises:
        ModelUnusable: the model folder is asked for, or there, and cannot be used; the text says why.
    """
    match engine:
        case "fake":
            return fake
        case "embedded":
            return Embedded(cache_dir=cache_dir, warning=_ABSTRACT)
        case "flux":
            check_flux_folder(model_dir)
            return FluxFolder(path=model_dir.absolute())
        case "auto":
            return _choose_for(model_dir, cache_dir)
        case _:
            assert_never(engine)


def _choose_for(model_dir: Path, cache_dir: Path) -> EngineChoice:
    index = model_dir / "model_index.json"
    if index.is_file() and _read_object(index).get("_class_name") == _PIPELINE:
        # A FLUX folder that is incomplete is an accident: worth an error, not a silent other model.
        check_flux_folder(model_dir)
        return FluxFolder(path=model_dir.absolute())
    return Embedded(
        cache_dir=cache_dir, warning=f"{_ABSTRACT}, as there is no FLUX model in {model_dir.absolute()}"
    )


def check_flux_folder(folder: Path) -> None:
    """Raise `ModelUnusable`, with all that is wrong, unless this looks like a whole FLUX pipeline.

    The tensors themselves are checked when they are loaded.
    """
    if not folder.is_dir():
        raise ModelUnusable(
            f"{folder.absolute()}: no such folder; a FLUX model in diffusers' layout is expected"
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
    problems = [
        problem for name in (*_WEIGHTED, *_PLAIN) for problem in _component_problems(folder, name, index)
    ]
    if problems:
        raise ModelUnusable(f"{folder.absolute()}: {'; '.join(problems)}")


def _component_problems(folder: Path, name: str, index: dict[str, object]) -> list[str]:
    allowed = (_WEIGHTED | _PLAIN)[name]
    match index.get(name):
        case [_, str(found)] if found in allowed:
            pass
        case found:
            return [f"model_index.json: {name} is {found!r}, expected {' or '.join(allowed)}"]
    if not (folder / name).is_dir():
        return [f"folder {name} is missing"]
    if name in _PLAIN:
        return [] if any((folder / name).glob("*.json")) else [f"folder {name} has no .json file"]
    return _weight_problems(folder / name)


def _weight_problems(component: Path) -> list[str]:
    config = component / "config.json"
    if not config.is_file():
        return [f"{component.name}/config.json is missing"]
    if "quantization_config" in _read_object(config):
        return [
            f"{component.name} is quantized in a way that is not supported; bf16, fp16 or fp32 is expected"
        ]
    if any(component.glob("*.safetensors")):
        return []
    pickled = sorted(file.name for file in component.glob("*.bin"))
    hint = f"; {pickled[0]} is not read, as loading it would execute code" if pickled else ""
    return [f"folder {component.name} has no .safetensors file{hint}"]


def _read_object(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusable(f"{file.absolute()}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelUnusable(f"{file.absolute()}: a JSON object is expected")
    return content
