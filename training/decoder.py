"""Last stage: the decoder alone, on latents as imperfect as a transformer leaves them."""

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.autoencoder import round_trip
from training.checkpoint import Tensors, load_state, state_of
from training.geometry import make_vae
from training.latents import Latents
from training.recipe import StageName, StageRecipe
from training.renderer import render
from training.scenes import draw_scene

_SIDES: Final = (128, 192, 256)
_NOISE_MAX: Final = 0.3
"""Of the normalised latents' spread."""
_PAIRS: Final = 0.15


class DecoderStage:
    name: StageName = "decoder"

    def __init__(self, recipe: StageRecipe, latents: Latents, *, seed: int, device: str) -> None:
        self.recipe = recipe
        self._latents = latents
        self._seed = seed
        self._device = device
        vae = make_vae()
        load_state(vae, state_of(latents.vae))
        self.trained: nn.Module = vae.decoder.to(device)

    def losses(self, step: int) -> dict[str, Any]:
        numbers = chance.numbers(self._seed, self.name, step)
        draw = chance.tensors(self._seed, self.name, "noise", step)
        side = numbers.choice(_SIDES)
        count = max(1, self.recipe.batch * 128**2 // side**2 // 2)
        scenes = [draw_scene(numbers, pairs=_PAIRS) for _ in range(count)]
        pictures = render(scenes, side, side, draw, device=self._device)
        latents = self._latents.encode(pictures)
        spread = _NOISE_MAX * torch.rand((count, 1, 1, 1), generator=draw)
        noisy = latents + (spread * torch.randn(latents.shape, generator=draw)).to(self._device)
        found = self.trained(noisy * self._latents.spread + self._latents.mean).float()
        wanted = pictures * 2 - 1
        absolute, square = functional.l1_loss(found, wanted), functional.mse_loss(found, wanted)
        return {"loss": absolute + square, "mse": square}

    def measure(self, weights: Tensors) -> dict[str, float]:
        vae = make_vae().to(self._device)
        load_state(vae, state_of(self._latents.vae))
        load_state(vae.decoder, weights)
        return round_trip(vae, device=self._device)
