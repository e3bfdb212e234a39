"""What a worker tells its forkserver, in a variable of the forkserver's environment."""

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

PRELOAD_MODULE: Final = "gpu_worker.engine_preload"
"""What the forkserver imports. multiprocessing says nothing if that fails."""
PRELOAD_REQUEST: Final = "FLUX_ENGINE_PRELOAD"
"""The variable. It is in no other process's environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreloadRequest:
    worker_pid: int
    cuda_visible_devices: str | None
    """As in `EngineOptions`."""
    modules: tuple[str, ...]
    """To be imported, in this order."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises `ValueError`, `KeyError`, `TypeError`: no such request."""
        fields = json.loads(text)
        return cls(**{**fields, "modules": tuple(fields["modules"])})
