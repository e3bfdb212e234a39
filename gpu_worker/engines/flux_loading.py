"""Loading a FLUX pipeline from a folder: strictly, offline, and without executing what came with it.

diffusers and transformers fill tensors that a file lacks with random numbers, and only warn.
That is an error here.
"""

import importlib.util
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import diffusers.utils.logging
import huggingface_hub.constants
import torch
import transformers.utils.logging
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from gpu_worker.engines.device_errors import is_out_of_memory
from gpu_worker.engines.engine import LoadProgress, ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.model_store import check_flux_folder

_HARMLESS: Final = {
    # T5's input embedding has two names; files hold one or both of them.
    "text_encoder_2": re.compile(r"(?:encoder\.embed_tokens|shared)\.weight"),
    # A table of 0, 1, 2, ... that older versions saved.
    "text_encoder": re.compile(r"(?:text_model\.)?embeddings\.position_ids"),
}
_NOTHING: Final = re.compile(r"(?!)")

_Loaded = TypeVar("_Loaded")
_LoadComponent = Callable[[Path], tuple[Any, dict[str, Any]]]


def load_pipeline(folder: Path, how: LoadPlan, on_progress: LoadProgress) -> FluxPipeline:
    """The pipeline where it is to lie, with all of its tensors from the folder's files.

    `on_progress` is called before each component, with the percentage of the weights that is loaded.

    Raises:
        ModelUnusable: something is missing, superfluous, of another shape or unreadable; the text names it.
        RuntimeError: the model did not fit into memory.
    """
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        raise RuntimeError("prepare_environment() must run before huggingface_hub is imported")
    check_flux_folder(folder)
    # tqdm's own lock is a semaphore of the system, which outlives a killed process.
    tqdm.set_lock(threading.RLock())
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    loaders = _component_loaders(how.dtype)
    sizes = {name: _weights_size_bytes(folder / name) for name in loaders}
    components: dict[str, Any] = {}
    for name, load in loaders.items():
        done = sum(sizes[finished] for finished in components)
        on_progress(f"loading {name}", 100 * done // max(1, sum(sizes.values())))
        device = how.t5_device if name == "text_encoder_2" else how.device
        components[name] = _load_strictly(folder / name, load).to(device)
    return _guarded(folder, lambda: _join(folder, components))


def _component_loaders(dtype: torch.dtype) -> dict[str, _LoadComponent]:
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    # With accelerate a large transformer needs its memory once while it loads, without it twice.
    sparing = importlib.util.find_spec("accelerate") is not None
    drawing: dict[str, Any] = {**local, "torch_dtype": dtype, "low_cpu_mem_usage": sparing}
    reading: dict[str, Any] = {**local, "dtype": dtype}
    return {
        "text_encoder": lambda path: CLIPTextModel.from_pretrained(path, **reading),
        "text_encoder_2": lambda path: T5EncoderModel.from_pretrained(path, **reading),
        "transformer": lambda path: FluxTransformer2DModel.from_pretrained(path, **drawing),
        "vae": lambda path: AutoencoderKL.from_pretrained(path, **drawing),
    }


def _load_strictly(path: Path, load: _LoadComponent) -> Any:
    component, findings = _guarded(path, lambda: load(path))
    harmless = _HARMLESS.get(path.name, _NOTHING)
    problems = [
        *_listed("missing", findings.get("missing_keys"), harmless),
        *_listed("unexpected", findings.get("unexpected_keys"), harmless),
        *_listed("of another shape than expected", findings.get("mismatched_keys"), _NOTHING),
        *_listed("unreadable", findings.get("error_msgs"), _NOTHING),
    ]
    if problems:
        raise ModelUnusable(f"{path}: {'; '.join(problems)}")
    return component


def _listed(fault: str, found: Iterable[Any] | None, harmless: re.Pattern[str]) -> list[str]:
    """One line about these tensors, or none."""
    names = sorted(str(entry if isinstance(entry, str) else entry[0]) for entry in found or ())
    names = [name for name in names if harmless.fullmatch(name) is None]
    if not names:
        return []
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"{names[0]}{others} {fault}"]


def _guarded(path: Path, load: Callable[[], _Loaded]) -> _Loaded:
    """Call `load`; what the libraries raise about the files becomes `ModelUnusable` with their path."""
    try:
        return load()
    except (OSError, ValueError, TypeError, LookupError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelUnusable(f"{path}: cannot be loaded: {first_line(error)}") from error


def _join(folder: Path, components: dict[str, Any]) -> FluxPipeline:
    pipeline = FluxPipeline.from_pretrained(
        folder,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        tokenizer_2=T5TokenizerFast.from_pretrained(folder / "tokenizer_2", local_files_only=True),
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(
            folder / "scheduler", local_files_only=True
        ),
        image_encoder=None,
        feature_extractor=None,
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        **components,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _weights_size_bytes(component: Path) -> int:
    return sum(file.stat().st_size for file in component.glob("*.safetensors"))
