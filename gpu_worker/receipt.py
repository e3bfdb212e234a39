"""What a PNG says about how it was made: text chunks, for `encode_png`. Pure."""

import json
from dataclasses import dataclass
from typing import Final

from gpu_worker.engines.engine import EngineJob
from proto.messages import ModelCard
from proto.versions import DISTRIBUTION, version_of

SOFTWARE: Final = "Software"
DESCRIPTION: Final = "Description"
RECEIPT: Final = "Receipt"
_FLOAT32_DECIMALS: Final = 6
"""The contract's guidance is a float32: 3.1 arrives as 3.0999999046325684."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptWriter:
    """Of one engine process. The same execution has the same texts, whenever they are asked for."""

    worker_id: str
    model: ModelCard
    with_prompt: bool
    """Whether the prompt goes into the picture, too."""

    def texts(self, job: EngineJob) -> dict[str, str]:
        """By PNG keyword."""
        software = f"{DISTRIBUTION} {version_of(DISTRIBUTION)}"
        texts = {SOFTWARE: software, RECEIPT: json.dumps(self._facts(job), separators=(",", ":"))}
        if self.with_prompt:
            texts[DESCRIPTION] = job.prompt
        return texts

    def _facts(self, job: EngineJob) -> dict[str, str | int | float]:
        """Named as in the contract's `Receipt` and `GenerateRequest`: readers of old pictures rely on it."""
        wanted, model = job.parameters, self.model
        return {
            "seed": wanted.seed,
            "steps": wanted.steps,
            "guidance_scale": round(wanted.guidance, _FLOAT32_DECIMALS),
            "height": wanted.height,
            "width": wanted.width,
            "model": model.name,
            "revision": model.revision,
            "quantization": model.quantization,
            "precision": model.precision,
            "versions": model.versions,
            "worker_id": self.worker_id,
            "attempts": job.attempts,
        }
