"""Latents as the transformer sees them: normalised, in patches, with places; and its noise levels."""

import math
from typing import Any, Final

import torch
from torch import nn

from training import chance
from training.geometry import DOWN, LATENT_CHANNELS, PATCH, make_scheduler
from training.renderer import render
from training.scenes import draw_scene

_SCENES_FOR_SPREAD: Final = 64
_SCHEDULE: Final = make_scheduler().config


class Latents(nn.Module):  # type: ignore[misc]
    """An autoencoder whose encoder is finished, with the mean and spread of what it makes."""

    def __init__(self, vae: Any, mean: float, spread: float) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self.mean, self.spread = mean, spread

    def encode(self, pictures: Any) -> Any:
        """Pictures (0-1) to normalised latents, (count, channels, height / 16, width / 16)."""
        with torch.no_grad():
            made = [self.vae.encode(it * 2 - 1).latent_dist.mean for it in pictures.split(_at_once(pictures))]
            return (torch.cat(made).float() - self.mean) / self.spread

    def decode(self, latents: Any) -> Any:
        """Normalised latents to pictures, 0-1."""
        with torch.no_grad():
            made = [
                self.vae.decode(it * self.spread + self.mean).sample
                for it in latents.split(_at_once(latents))
            ]
            return ((torch.cat(made).float() + 1) / 2).clamp(0, 1)


def _at_once(tensor: Any) -> int:
    """A CPU is quickest where a few pictures stay in its caches."""
    return 8 if tensor.device.type == "cpu" else 256


def measured_latents(vae: Any, device: str) -> Latents:
    """With the mean and spread of what this autoencoder makes of some scenes."""
    plain = Latents(vae, 0.0, 1.0)
    numbers = chance.numbers("spread")
    scenes = [draw_scene(numbers) for _ in range(_SCENES_FOR_SPREAD)]
    pictures = render(scenes, 256, 256, chance.tensors("spread"), device=device)
    found = plain.encode(pictures)
    return Latents(vae, float(found.mean()), float(found.std()))


def packed(latents: Any) -> Any:
    """As FLUX has them: a token for each 2 x 2, (count, tokens, 4 channels)."""
    count, channels, height, width = latents.shape
    parts = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(count, height // 2 * (width // 2), 4 * channels)


def unpacked(tokens: Any, height: int, width: int) -> Any:
    """Of a picture with this size in pixels."""
    parts = tokens.view(-1, height // PATCH, width // PATCH, LATENT_CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(-1, LATENT_CHANNELS, height // DOWN, width // DOWN)


def places(height: int, width: int, device: Any) -> Any:
    """Of the tokens, (tokens, 3): zero, row, column."""
    rows, columns = height // PATCH, width // PATCH
    found = torch.zeros(rows, columns, 3, device=device)
    found[..., 1] = torch.arange(rows, device=device)[:, None]
    found[..., 2] = torch.arange(columns, device=device)[None, :]
    return found.view(-1, 3)


def draw_levels(count: int, tokens: int, numbers: Any) -> Any:
    """Parts of noise, logit-normal, moved and moved as the pipeline does it for so many tokens."""
    normal = torch.randn(count, generator=numbers)
    return torch.sigmoid(normal + shift(tokens))


def shift(tokens: int) -> float:
    """FLUX's `mu`: moving a sigmoid's argument by it is the shift exp(mu) / (exp(mu) + 1 / t - 1)."""
    slope = (_SCHEDULE.max_shift - _SCHEDULE.base_shift) / (
        _SCHEDULE.max_image_seq_len - _SCHEDULE.base_image_seq_len
    )
    return float(_SCHEDULE.base_shift + slope * (tokens - _SCHEDULE.base_image_seq_len))


def euler_levels(steps: int, tokens: int) -> list[float]:
    """From 1 to 0, those at which the pipeline stands, its last included."""
    factor = math.exp(shift(tokens))
    straight = [1 - step * (1 - 1 / steps) / max(1, steps - 1) for step in range(steps)]
    return [factor / (factor + 1 / level - 1) for level in straight] + [0.0]
