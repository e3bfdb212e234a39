"""The plain model folder that is quantized."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.engines.error_text import first_line
from gpu_worker.engines.flux_architecture import LARGE, LargeComponent
from gpu_worker.engines.flux_loading import checked_model
from gpu_worker.engines.weight_files import WeightFile, plain_weight_files
from gpu_worker.manifest import Manifest
from gpu_worker.model_store import check_plain_folder

_UNKNOWN: Final = "unknown"
_SMALL: Final = ("text_encoder", "vae")
_WITHOUT_WEIGHTS: Final = ("tokenizer", "tokenizer_2", "scheduler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    folder: Path
    manifest: Manifest | None
    files: dict[LargeComponent, list[WeightFile]]
    models: dict[LargeComponent, Any]
    """On meta."""
    copied: tuple[str, ...]
    """What the new folder needs unchanged, by paths in the folder."""

    @property
    def name(self) -> str:
        return self.manifest.source if self.manifest is not None else self.folder.resolve().name or _UNKNOWN

    @property
    def revision(self) -> str:
        return self.manifest.revision if self.manifest is not None else _UNKNOWN


def open_source(folder: Path) -> Source:
    """The folder, once it is known to hold all weights of a plain FLUX model, as far as headers tell.

    Raises:
        ModelUnusable: it does not; the text says why.
    """
    manifest = check_plain_folder(folder)
    files = {name: plain_weight_files(folder / name) for name in LARGE}
    return Source(
        folder=folder,
        manifest=manifest,
        files=files,
        models={name: checked_model(name, folder / name, files[name]) for name in LARGE},
        copied=tuple(_copied(folder, manifest)),
    )


def _copied(folder: Path, manifest: Manifest | None) -> list[str]:
    paths = ["model_index.json", *(f"{name}/config.json" for name in (*LARGE, *_SMALL))]
    for name in _SMALL:
        paths += [f"{name}/{file.path.name}" for file in plain_weight_files(folder / name)]
        paths += [f"{name}/{file.name}" for file in (folder / name).glob("*.safetensors.index.json")]
    for name in _WITHOUT_WEIGHTS:
        there = (file for file in (folder / name).iterdir() if file.is_file() and file.name[0] != ".")
        paths += [f"{name}/{file.name}" for file in there]
    return sorted(path for path in paths if manifest is None or path in manifest.files)


class TensorReader:
    """Reads single tensors of a component. To be used in a `with` statement."""

    def __init__(self, files: list[WeightFile]) -> None:
        self._path_by_tensor = {name: file.path for file in files for name in file.tensors}
        self._opened: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> torch.Tensor:
        """As it is stored; a view of the file, dropped before the next is read. Raises `ModelUnusable`."""
        path = self._path_by_tensor[name]
        try:
            if path not in self._opened:
                self._opened[path] = self._stack.enter_context(safe_open(path, framework="pt"))
            return self._opened[path].get_tensor(name)
        except SafetensorError as error:
            raise ModelUnusable(f"{path}: {name} cannot be read: {first_line(error)}") from error
