"""The trained parts as a folder that `FluxPipeline.from_pretrained` loads, with a manifest and a card."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FluxPipeline

from gpu_worker.digests import folder_entries
from gpu_worker.manifest import FileEntry, Manifest, write_manifest
from training.geometry import make_scheduler
from training.latents import Latents
from training.text import TextEncoders

SIZE_MAX_BYTES: Final = 12_000_000
_SOURCE: Final = "embedded-flux"
_CARD: Final = Path(__file__).with_name("model_card.md")


def write_model(
    folder: Path,
    *,
    latents: Latents,
    text: TextEncoders,
    transformer: Any,
    recipe: str,
    report: Callable[[str], str],
) -> int:
    """Replaces the folder, in bf16. The weights' size in bytes.

    The revision is `recipe` and a part of the weights' digest; `report` makes Markdown for the card of it.

    Raises:
        OSError: it cannot be written.
        ValueError: it is larger than what is shipped may be.
    """
    vae = latents.vae
    vae.register_to_config(scaling_factor=1 / latents.spread, shift_factor=latents.mean)
    pipeline = FluxPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=text.clip,
        text_encoder_2=text.t5,
        tokenizer=text.clip_tokenizer,
        tokenizer_2=text.t5_tokenizer,
        scheduler=make_scheduler(),
    ).to(dtype=torch.bfloat16)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished, safe_serialization=True)
    revision = f"{recipe}-{_weights_digest(folder_entries(unfinished))[:8]}"
    card = _CARD.read_text(encoding="utf-8") + report(revision)
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in unfinished.rglob("*.safetensors"))
    if size > SIZE_MAX_BYTES:
        raise ValueError(
            f"{unfinished}: the weights have {size} bytes, at most {SIZE_MAX_BYTES} may be shipped"
        )
    for file in unfinished.rglob("*.safetensors"):
        file.chmod(0o644)  # The library makes them for their owner alone.
    write_manifest(unfinished, Manifest(source=_SOURCE, revision=revision, files=folder_entries(unfinished)))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return size


def _weights_digest(files: Mapping[str, FileEntry]) -> str:
    found = hashlib.sha256()
    for name, entry in sorted(files.items()):
        if name.endswith(".safetensors"):
            found.update(f"{name} {entry.sha256}\n".encode())
    return found.hexdigest()
