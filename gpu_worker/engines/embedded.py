"""The embedded model as an engine. Call `prepare_environment()` before importing this module."""

from pathlib import Path

import structlog
import torch

from gpu_worker.embedded_model import discard_embedded_model, embedded_model_folder
from gpu_worker.engines.devices import choose_device
from gpu_worker.engines.engine import LoadProgress, ModelUnusable
from gpu_worker.engines.flux import FluxEngine
from gpu_worker.manifest import Manifest
from gpu_worker.memory_plan import MemoryPlan, PlanUnusable
from proto.messages import ModelCard

log = structlog.get_logger()


class EmbeddedEngine(FluxEngine):
    """Builds the model on its first use, and again where it finds it damaged."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        warning: str,
        device: str,
        device_asked_for: str = "",
        threads: int | None,
        memory_plan: MemoryPlan | None = None,
        prompt_cache_bytes_max: int = 0,
    ) -> None:
        self._cache_dir = cache_dir
        self._model_warning = warning
        super().__init__(
            cache_dir,
            device=device,
            device_asked_for=device_asked_for,
            # So small a model is faster on one thread, and its bytes depend on their number.
            threads=1 if threads is None else threads,
            memory_plan=memory_plan,
            prompt_cache_bytes_max=prompt_cache_bytes_max,
            engine="embedded",
        )

    def load(self, on_progress: LoadProgress) -> ModelCard:
        choose_device(self._wanted_device, self._device_asked_for)
        on_progress("building the embedded model", 0)
        self._folder = embedded_model_folder(self._cache_dir)
        try:
            return super().load(on_progress)
        except PlanUnusable:
            raise
        except ModelUnusable as error:
            log.warning("embedded model is built again", reason=str(error))
        discard_embedded_model(self._cache_dir)
        self._folder = embedded_model_folder(self._cache_dir)
        return super().load(on_progress)

    def _warning(self, _device: torch.device, _manifest: Manifest | None) -> str:
        return self._model_warning
