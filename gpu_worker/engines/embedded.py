"""The embedded model as an engine. Call `prepare_environment()` before importing this module."""

from pathlib import Path

import structlog
import torch

from gpu_worker.embedded_model import discard_embedded_model, embedded_model_folder
from gpu_worker.engines.engine import LoadProgress, ModelUnusable
from gpu_worker.engines.flux import FluxEngine, choose_device
from proto.messages import ModelCard

log = structlog.get_logger()


class EmbeddedEngine(FluxEngine):
    """Builds the model on its first use, and again where it finds it damaged."""

    def __init__(self, cache_dir: Path, *, warning: str, device: str, threads: int | None) -> None:
        self._cache_dir = cache_dir
        self._model_warning = warning
        super().__init__(
            cache_dir,
            device=device,
            # So small a model is faster on one thread, and its bytes depend on their number.
            threads=1 if threads is None else threads,
            engine="embedded",
        )

    def load(self, on_progress: LoadProgress) -> ModelCard:
        choose_device(self._wanted_device)
        on_progress("building the embedded model", 0)
        self._folder = embedded_model_folder(self._cache_dir)
        try:
            return super().load(on_progress)
        except ModelUnusable as error:
            log.warning("embedded model is built again", reason=str(error))
        discard_embedded_model(self._cache_dir)
        self._folder = embedded_model_folder(self._cache_dir)
        return super().load(on_progress)

    def _warning(self, _device: torch.device) -> str:
        return self._model_warning
