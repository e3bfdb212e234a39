"""The model's parts before they are trained: stock classes, small enough for one core of a CPU.

Five VAE blocks make a token 32 pixels wide, so that such a picture is 64 tokens.
"""

from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LATENT_CHANNELS: Final = 16
DOWN: Final = 16
"""Pixels of a latent pixel's side."""
PATCH: Final = 2 * DOWN
"""Pixels of a token's side."""
T5_TOKENS: Final = 32
CLIP_TOKENS: Final = 77
_WIDTH: Final = 128
_BLOCKS: Final = (16, 16, 32, 64, 96)
_BEFORE: Final = 1
_AFTER: Final = 17
"""Of T5's 32 buckets of relative places, those of the nearest words; the next ones follow."""


def make_vae() -> Any:
    """Its scale and shift are those of plain numbers: they are measured after its training."""
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=_BLOCKS,
        layers_per_block=1,
        # Of a plain picture, groups of two channels would leave signs only; one group of all learnt slower.
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * len(_BLOCKS),
        up_block_types=("UpDecoderBlock2D",) * len(_BLOCKS),
        sample_size=256,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def make_transformer() -> Any:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=_WIDTH // 32,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 14, 14),
    )


def make_clip(tokenizer: CLIPTokenizer) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=_WIDTH,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_t5(tokenizer: T5TokenizerFast) -> Any:
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=_WIDTH,
            d_kv=32,
            d_ff=2 * _WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        # Each head begins with its eye on one neighbour: from nothing it takes thousands of steps until a
        # colour is told from the next one's.
        for head, bucket in enumerate((_BEFORE, _AFTER, _BEFORE + 1, _AFTER + 1)):
            bias[bucket, head] += 4.0
    return t5


def make_scheduler() -> Any:
    """FLUX.1-dev's own."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
