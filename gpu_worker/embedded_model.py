"""The embedded model: a real FLUX pipeline, small enough for any CPU, made here instead of downloaded.

Its weights are random, with gains chosen by eye so that the pictures have large shapes that depend on the
prompt, and details that depend on the seed. Only the engine process imports this module.
"""

import tempfile
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from gpu_worker.digests import folder_entries
from gpu_worker.engines.engine import ModelUnusable
from gpu_worker.manifest import MANIFEST_NAME, Manifest, write_manifest

RECIPE: Final = 1
"""Counts up whenever the same prompt and seed would give another picture, or older folders cannot be read."""

_SEED: Final = 20240801
_CLIP_TOKENS: Final = 77
_T5_TOKENS: Final = 64


def embedded_model_folder(cache_dir: Path) -> Path:
    """The folder with the embedded model, built if it is not there yet. Two builders at once are fine.

    Raises:
        ModelUnusable: the cache folder cannot be written.
    """
    folder = _folder_in(cache_dir)
    if (folder / MANIFEST_NAME).is_file():
        return folder
    if folder.is_dir():
        discard_embedded_model(cache_dir)  # Earlier versions wrote no manifest.
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{folder.name}-", dir=cache_dir, ignore_cleanup_errors=True
        ) as scratch:
            unfinished = Path(scratch) / "model"
            build_embedded_model(unfinished)
            _move_into_place(unfinished, folder)
    except OSError as error:
        raise ModelUnusable(f"the embedded model cannot be written to {folder}: {error}") from error
    return folder


def _folder_in(cache_dir: Path) -> Path:
    return cache_dir.absolute() / f"embedded-flux-{RECIPE}"


def _move_into_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another builder was faster, and what it made is the same.
        if not folder.is_dir():
            raise


def discard_embedded_model(cache_dir: Path) -> None:
    """Remove a damaged folder, so that the next call builds it again. Raises `ModelUnusable`."""
    folder = _folder_in(cache_dir)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=cache_dir) as grave:
            # At once for whoever else is looking for it.
            folder.rename(Path(grave) / "model")
    except FileNotFoundError:
        pass  # Somebody else was faster.
    except OSError as error:
        raise ModelUnusable(f"{folder} is damaged and cannot be removed: {error}") from error


def build_embedded_model(folder: Path) -> None:
    """Write the model to this folder in diffusers' layout, with a manifest: the same bytes each time.

    Raises `OSError`.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        pipeline = _assemble()
        _give_the_prompt_weight(pipeline.transformer)
        _join_latent_pixels(pipeline.transformer)
        _smooth(pipeline.vae)
    pipeline.save_pretrained(folder, safe_serialization=True)
    write_manifest(
        folder, Manifest(source="embedded-flux", revision=str(RECIPE), files=folder_entries(folder))
    )


def _assemble() -> FluxPipeline:
    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    return FluxPipeline(
        transformer=_transformer(),
        vae=_vae(),
        text_encoder=_clip(tokenizer),
        text_encoder_2=_t5(tokenizer_2),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
    )


def _transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def _clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=32,
            max_position_embeddings=_CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def _clip_tokenizer() -> CLIPTokenizer:
    """A token a byte, so that no prompt is unknown to it."""
    symbols = _byte_symbols()
    vocabulary = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(vocabulary)},
        merges=[],
        model_max_length=_CLIP_TOKENS,
    )


def _byte_symbols() -> list[str]:
    """The printable stand-ins that byte-level vocabularies have for the 256 bytes, in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = (chr(0x100 + number) for number in range(256))
    return [chr(byte) if byte in printable else next(stand_ins) for byte in range(256)]


def _t5_tokenizer() -> T5TokenizerFast:
    """A token a printable ASCII character; all else is `<unk>`, and left to the other tokenizer."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -2.0)]
    letters = [(chr(code), -3.0) for code in range(0x21, 0x7F)]
    return T5TokenizerFast(vocab=special + letters, extra_ids=0, model_max_length=_T5_TOKENS)


def _give_the_prompt_weight(transformer: FluxTransformer2DModel) -> None:
    """Let the text outweigh the noise, and sharpen attention until it depends on the place."""
    for name, parameter in transformer.named_parameters():
        if (".norm" in name and ".linear." in name) or name.startswith("norm_out.linear"):
            parameter.mul_(4.0)
        elif any(part in name for part in ("norm_q", "norm_k", "norm_added")):
            parameter.mul_(2.0)
        elif name.startswith(("context_embedder", "time_text_embed.text")):
            parameter.mul_(3.0)
    transformer.x_embedder.weight.mul_(0.3)
    transformer.proj_out.weight.mul_(5.0)


def _join_latent_pixels(transformer: FluxTransformer2DModel) -> None:
    """Bring the 2 x 2 latent pixels of a token close to their mean; otherwise they show as a grid."""
    for parameter in (transformer.proj_out.weight, transformer.proj_out.bias):
        patches = parameter.view(16, 4, -1)
        mean = patches.mean(dim=1, keepdim=True)
        patches.copy_(1.6 * mean + 0.3 * (patches - mean))


def _smooth(vae: AutoencoderKL) -> None:
    """Make the decoder's kernels mostly blurs, so that shapes survive it."""
    edge = torch.tensor([0.25, 0.5, 0.25])
    blur = edge[:, None] * edge[None, :]
    for parameter in vae.decoder.parameters():
        if parameter.ndim == 4 and parameter.shape[-1] == 3:
            parameter.copy_(0.9 * parameter.sum((2, 3), keepdim=True) * blur + 0.1 * parameter)
    vae.decoder.conv_out.weight.mul_(1.4)
