"""What torch, transformers and diffusers must find in the environment before they are imported."""

import os
import sys
from typing import Final

_ENVIRONMENT: Final = {
    # Nothing is fetched, and nothing that came with a model is executed.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    # Below errors they report what this program checks itself, and parts of prompts.
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The driver's own order, so that a GPU has the same number in the readings and in torch.
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
}


def prepare_environment(cuda_visible_devices: str | None = None) -> None:
    """Keep the libraries offline and quiet in this process; limit it to these GPUs unless None."""
    os.environ.update(_ENVIRONMENT)
    # transformers imports hqq wherever it is installed, which costs seconds. Only the quantizer uses it.
    sys.modules.setdefault("hqq", None)  # type: ignore[arg-type]
    if cuda_visible_devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = cuda_visible_devices
