"""Loading a FLUX pipeline from a folder: strictly, offline, and without executing what came with it.

diffusers and transformers fill tensors that a file lacks with random numbers, and only warn.
That is an error here. The two large models are read by our own code, straight to their device; CLIP and the
VAE, which are small, by the libraries.
"""

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import diffusers.utils.logging
import huggingface_hub.constants
import transformers.utils.logging
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5TokenizerFast

from gpu_worker.digests import check_digests
from gpu_worker.engines.device_errors import is_out_of_memory, is_poisoned
from gpu_worker.engines.engine import LoadProgress, ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.flux_architecture import LARGE, SECOND_NAMES, LargeComponent, blocks_of, empty_model
from gpu_worker.engines.load_plan import LoadPlan
from gpu_worker.engines.load_progress import BytesRead
from gpu_worker.engines.strict_loading import Destination, faults, fill, listed
from gpu_worker.engines.weight_files import WeightFile, plain_weight_files, quantized_weight_files
from gpu_worker.manifest import Manifest, read_manifest
from gpu_worker.model_store import check_flux_folder

_SMALL: Final = ("text_encoder", "vae")
# A table of 0, 1, 2, ... that older versions saved with CLIP.
_HARMLESS: Final = re.compile(r"(?:text_model\.)?embeddings\.position_ids")

_OF_THE_FILES: Final = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
"""What the libraries raise about configurations and weights that make no sense."""

_Loaded = TypeVar("_Loaded")


def load_pipeline(folder: Path, how: LoadPlan, on_progress: LoadProgress) -> FluxPipeline:
    """The pipeline, each of its models where the plan wants it, all of its tensors from the folder's files.

    `on_progress` is called with the percentage of all bytes to be read, those that are only checked included.

    Raises:
        ModelUnusable: something is missing, superfluous, of another shape, changed or unreadable; names it.
        RuntimeError: the model did not fit into memory, or the device is broken.
    """
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        raise RuntimeError("prepare_environment() must run before huggingface_hub is imported")
    check_flux_folder(folder)
    _quieten()
    manifest = read_manifest(folder)
    files = {name: _weight_files(folder / name, manifest) for name in (*_SMALL, *LARGE)}
    progress = BytesRead(_total_bytes(files, manifest), on_progress)
    if manifest is not None:
        progress.begin("checking the model's files")
        check_digests(folder, manifest, progress.add)
    components: dict[str, Any] = {}
    for large in LARGE:
        progress.begin(f"loading {large}")
        device, dtype = (
            (how.t5_device, how.t5_dtype) if large == "text_encoder_2" else (how.device, how.dtype)
        )
        to = Destination(device=device, dtype=dtype, expand=how.expand)
        components[large] = load_large(large, folder / large, files[large], to, progress.add)
    for small in _SMALL:
        progress.begin(f"loading {small}")
        components[small] = _load_small(folder / small, how)
        progress.add(_size_bytes(files[small]))
    return _guarded(folder, lambda: _join(folder, components))


def load_large(
    name: LargeComponent,
    folder: Path,
    files: Sequence[WeightFile],
    to: Destination,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> Any:
    """The transformer or T5 from its folder. Raises as `load_pipeline`."""
    model = checked_model(name, folder, files)
    _guarded(folder, lambda: fill(model, files, SECOND_NAMES[name], to, on_bytes))
    # A library's own loader leaves the same.
    if name == "text_encoder_2":
        model.config.dtype = to.dtype
    return model


def checked_model(name: LargeComponent, folder: Path, files: Sequence[WeightFile]) -> Any:
    """The model without weights, once these files are known to fit it. Raises `ModelUnusable`."""
    model = _guarded(folder, lambda: empty_model(name, folder))
    quantizable = {
        layer: linear for block in blocks_of(name, model) for layer, linear in block.linears.items()
    }
    if problems := faults(model, files, SECOND_NAMES[name], quantizable):
        raise ModelUnusable(f"{folder}: {'; '.join(problems)}")
    return model


def _quieten() -> None:
    # tqdm's own lock is a semaphore of the system, which outlives a killed process.
    tqdm.set_lock(threading.RLock())
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _weight_files(component: Path, manifest: Manifest | None) -> list[WeightFile]:
    quantization = manifest.quantization if manifest is not None else None
    if quantization is not None and component.name in quantization.components:
        return quantized_weight_files(component)
    return plain_weight_files(component)


def _total_bytes(files: dict[str, list[WeightFile]], manifest: Manifest | None) -> int:
    checked = sum(entry.size_bytes for entry in manifest.files.values()) if manifest is not None else 0
    return checked + sum(_size_bytes(of_component) for of_component in files.values())


def _size_bytes(files: Sequence[WeightFile]) -> int:
    return sum(file.size_bytes for file in files)


def _load_small(path: Path, how: LoadPlan) -> Any:
    local: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    component, findings = _guarded(
        path,
        lambda: (
            AutoencoderKL.from_pretrained(path, torch_dtype=how.dtype, **local)
            if path.name == "vae"
            else CLIPTextModel.from_pretrained(path, dtype=how.dtype, **local)
        ),
    )
    problems = [
        *listed("missing", _names(findings.get("missing_keys"))),
        *listed("unexpected", _names(findings.get("unexpected_keys"))),
        *listed("of another shape than expected", _names(findings.get("mismatched_keys"))),
        *listed("unreadable", _names(findings.get("error_msgs"))),
    ]
    if problems:
        raise ModelUnusable(f"{path}: {'; '.join(problems)}")
    component.to(how.device)
    if how.device.type == "cpu":
        # The libraries leave views of mapped files: one that is cut later would end the process.
        for tensor in (*component.parameters(), *component.buffers()):
            tensor.data = tensor.data.clone()
    return component


def _names(found: Iterable[Any] | None) -> list[str]:
    names = [str(entry if isinstance(entry, str) else entry[0]) for entry in found or ()]
    return [name for name in names if _HARMLESS.fullmatch(name) is None]


def _guarded(path: Path, load: Callable[[], _Loaded]) -> _Loaded:
    """Call `load`; what the libraries raise about the files becomes `ModelUnusable` with their path."""
    try:
        return load()
    except _OF_THE_FILES as error:
        if is_out_of_memory(error) or is_poisoned(error):
            raise  # of the device, not of the files
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
