"""What an engine says of the model that it has loaded."""

from pathlib import Path
from typing import Final

from gpu_worker.manifest import Manifest, Quantization
from proto.versions import DISTRIBUTION, version_of

_NAME_MAX_CHARACTERS: Final = 128
_LIBRARIES: Final = (DISTRIBUTION, "torch", "diffusers", "transformers")
NO_MANIFEST: Final = "the model folder has no flux-server.json, so its files were not checked against digests"


def model_name(folder: Path, manifest: Manifest | None) -> str:
    """Where the weights come from, so far as the folder tells."""
    return (folder.name if manifest is None else manifest.source)[:_NAME_MAX_CHARACTERS]


def quantization_title(quantization: Quantization | None) -> str:
    if quantization is None:
        return ""
    stored = f"{quantization.method} {quantization.bits}-bit, groups of {quantization.group_size}"
    return f"{stored} ({', '.join(quantization.components)})"


def library_versions() -> str:
    """Of what makes a difference to the pixels."""
    return ", ".join(f"{name} {version_of(name)}" for name in _LIBRARIES)
