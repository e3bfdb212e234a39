"""A FLUX folder with random weights, made on the spot: for speed and memory, which do not ask what is drawn.

    python -m gpu.random_flux FOLDER [--scale full|small]

`full` has the sizes of FLUX.1-dev (33.7 GB on disk in bf16, transformer 11.9 B parameters); `small` has few
and narrow blocks, for trying on a CPU what is meant for a GPU. Main memory holds one file of 4 GiB at a time.
The tokenizers are the embedded model's.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from gpu_worker.manifest import Manifest, file_entry, write_manifest
from gpu_worker.model_store import EMBEDDED_FOLDER

Scale = Literal["full", "small"]

T5_TOKENS: Final = 512
SHARD_BYTES: Final = 4 << 30
_STANDARD_DEVIATION: Final = 0.02
"""Of the weights, as such models are initialized; norms are 1 and biases 0, so that values stay finite."""
_SECOND_NAME: Final = "encoder.embed_tokens.weight"
"""Of T5's `shared.weight`: files hold it once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """As the configurations of black-forest-labs/FLUX.1-dev have them."""

    double_blocks: int = 19
    single_blocks: int = 38
    heads: int = 24
    head_dim: int = 128
    rope: tuple[int, int, int] = (16, 56, 56)
    t5_width: int = 4096
    t5_feed_forward: int = 10240
    t5_heads: int = 64
    t5_layers: int = 24
    t5_vocabulary: int = 32128
    clip_width: int = 768
    clip_layers: int = 12
    clip_vocabulary: int = 49408
    vae_channels: tuple[int, int, int, int] = (128, 256, 512, 512)


SIZES: Final[dict[Scale, Sizes]] = {
    "full": Sizes(),
    "small": Sizes(
        double_blocks=1,
        single_blocks=2,
        heads=2,
        head_dim=64,
        rope=(16, 24, 24),
        t5_width=128,
        t5_feed_forward=256,
        t5_heads=2,
        t5_layers=2,
        t5_vocabulary=512,
        clip_width=64,
        clip_layers=2,
        clip_vocabulary=1024,
        vae_channels=(32, 32, 64, 64),
    ),
}


def make_random_flux(folder: Path, scale: Scale, *, device: str = "cpu", seed: int = 0) -> None:
    """Write the folder, bf16, with its manifest. `device` is where the random numbers come from."""
    sizes = SIZES[scale]
    shutil.copytree(EMBEDDED_FOLDER, folder)  # for its tokenizers, scheduler and index
    _lengthen_prompts(folder / "tokenizer_2" / "tokenizer_config.json")
    generator = torch.Generator(device).manual_seed(seed)
    for name, model in _empty_components(sizes).items():
        _replace(folder / name, model, generator)
    FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    ).save_pretrained(folder / "scheduler")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.parent != folder)
    files.append(folder / "model_index.json")
    entries = {file.relative_to(folder).as_posix(): file_entry(file) for file in files}
    write_manifest(folder, Manifest(source=f"random-flux-{scale}", revision=str(seed), files=entries))


def _lengthen_prompts(tokenizer_config: Path) -> None:
    """The embedded model's T5 reads 32 tokens of a prompt, the real one 512."""
    settings = json.loads(tokenizer_config.read_text())
    tokenizer_config.write_text(json.dumps(settings | {"model_max_length": T5_TOKENS}))


def _empty_components(sizes: Sizes) -> dict[str, Any]:
    with init_empty_weights(include_buffers=False):
        return {
            "transformer": flux_transformer(sizes),
            "vae": flux_vae(sizes),
            "text_encoder": CLIPTextModel(clip_config(sizes)),
            "text_encoder_2": T5EncoderModel(t5_config(sizes)),
        }


def flux_transformer(sizes: Sizes) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.t5_width,
        pooled_projection_dim=sizes.clip_width,
        guidance_embeds=True,
        axes_dims_rope=sizes.rope,
    )


def flux_vae(sizes: Sizes) -> AutoencoderKL:
    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=sizes.vae_channels,
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        sample_size=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip_config(sizes: Sizes) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=sizes.clip_vocabulary,
        hidden_size=sizes.clip_width,
        intermediate_size=4 * sizes.clip_width,
        num_hidden_layers=sizes.clip_layers,
        num_attention_heads=max(1, sizes.clip_width // 64),
        projection_dim=sizes.clip_width,
        max_position_embeddings=77,
        # The pooled state is that of the tokenizer's last symbol, and the tokenizer is the embedded model's.
        **_embedded_clip_ids(),
    )


def _embedded_clip_ids() -> dict[str, int]:
    config = json.loads((EMBEDDED_FOLDER / "text_encoder" / "config.json").read_bytes())
    return {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def t5_config(sizes: Sizes) -> T5Config:
    return T5Config(
        vocab_size=sizes.t5_vocabulary,
        d_model=sizes.t5_width,
        d_kv=64,
        d_ff=sizes.t5_feed_forward,
        num_layers=sizes.t5_layers,
        num_heads=sizes.t5_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
    )


def _replace(component: Path, model: Any, generator: torch.Generator) -> None:
    """The embedded model's files of this component by random ones of this shape."""
    for file in component.iterdir():
        file.unlink()
    if hasattr(model, "save_config"):
        model.save_config(component)
        stem = "diffusion_pytorch_model"
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(component)
        stem = "model"
    shards = list(_shards(model))
    names = [f"{stem}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    for name, shapes in zip(names, shards, strict=True):
        tensors = {key: _random(key, shape, generator) for key, shape in shapes.items()}
        save_file(tensors, component / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: name for name, shapes in zip(names, shards, strict=True) for key in shapes}
        total_size = sum(2 * shape.numel() for shapes in shards for shape in shapes.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (component / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _shards(model: Any) -> Iterator[dict[str, torch.Size]]:
    """Names and shapes of the tensors, file by file."""
    shard: dict[str, torch.Size] = {}
    size_bytes = 0
    for name, tensor in model.named_parameters():
        if name == _SECOND_NAME:
            continue
        if shard and size_bytes + 2 * tensor.numel() > SHARD_BYTES:
            yield shard
            shard, size_bytes = {}, 0
        shard[name] = tensor.shape
        size_bytes += 2 * tensor.numel()
    yield shard


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:
        is_bias = name.endswith("bias")
        return torch.full(shape, 0.0 if is_bias else 1.0, dtype=torch.bfloat16)
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return (drawn * _STANDARD_DEVIATION).to(torch.bfloat16).cpu()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpu.random_flux")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=tuple(SIZES), default="full")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_random_flux(arguments.folder, arguments.scale, device=arguments.device, seed=arguments.seed)


if __name__ == "__main__":
    from gpu_worker.engines.offline import prepare_environment

    prepare_environment()
    main()
