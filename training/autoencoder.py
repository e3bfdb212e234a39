"""First stage: pictures to latents and back.

It sees pieces of scenes, most of them with edges: a whole scene is mostly plain.
"""

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.checkpoint import Tensors, load_state
from training.geometry import DOWN, LATENT_CHANNELS, make_vae
from training.recipe import StageName, StageRecipe
from training.renderer import Window, render
from training.scenes import CELLS, PLACES, Scene, draw_scene
from training.scorer import agreement, read_single

_KL_WEIGHT: Final = 1e-3
_KL_RAMP_STEPS: Final = 1000
_TONE_WEIGHT: Final = 2.0
"""Of errors that are as wide as a latent pixel: a wrong colour is worse than a wrong edge."""
_PIECES: Final = ((0.35, 32, 1), (0.6, 64, 2), (0.85, 128, 8), (1.0, 256, 32))
"""Up to this part of the steps: a piece's side in pixels, and by how much the batch is smaller then."""
_PICTURE_SIDES: Final = (128, 192, 256, 256, 256, 320, 512)
_PAIRS: Final = 0.15
_LOG_VARIANCE: Final = -4.0
_MEASURED: Final = 48
_ROWS: Final = {"top": 0, "middle": 1, "bottom": 2, "left": 0, "centre": 1, "right": 2}


def untrained_vae(seed: int) -> Any:
    torch.manual_seed(seed)
    vae = make_vae()
    with torch.no_grad():
        vae.encoder.conv_out.bias[LATENT_CHANNELS:].fill_(_LOG_VARIANCE)
        for module in vae.modules():
            if type(module).__name__ == "ResnetBlock2D":
                module.conv2.weight.mul_(0.3)
    return vae


class AutoencoderStage:
    name: StageName = "autoencoder"

    def __init__(self, recipe: StageRecipe, *, seed: int, device: str) -> None:
        self.recipe = recipe
        self._seed = seed
        self._device = device
        self.trained: nn.Module = untrained_vae(seed).to(device)

    def losses(self, step: int) -> dict[str, Any]:
        pictures = self._pieces(step) * 2 - 1
        noise = chance.tensors(self._seed, self.name, "noise", step)
        latents = self.trained.encode(pictures).latent_dist
        sample = latents.mean + latents.std * torch.randn(latents.mean.shape, generator=noise).to(
            self._device
        )
        found = self.trained.decode(sample).sample.float()
        absolute, square = functional.l1_loss(found, pictures), functional.mse_loss(found, pictures)
        divergence = latents.kl().mean() / latents.mean[0].numel()
        weight = _KL_WEIGHT * min(1.0, step / _KL_RAMP_STEPS)
        tone = functional.mse_loss(*(functional.avg_pool2d(it, DOWN) for it in (found, pictures)))
        loss = absolute + square + _TONE_WEIGHT * tone + weight * divergence
        return {"loss": loss, "mse": square, "tone": tone, "kl": divergence}

    def measure(self, weights: Tensors) -> dict[str, float]:
        """The scorer's opinion of whole pictures that went through it, and their PSNR in dB."""
        vae = make_vae().to(self._device)
        load_state(vae, weights)
        return round_trip(vae, device=self._device)

    def _pieces(self, step: int) -> Any:
        """Shape (count, 3, side, side), 0-1."""
        side, parts = next(
            (side, parts) for until, side, parts in _PIECES if step < until * self.recipe.steps
        )
        count = max(1, self.recipe.batch // parts)
        numbers = chance.numbers(self._seed, self.name, step)
        scenes = [draw_scene(numbers, pairs=_PAIRS) for _ in range(count)]
        picture_side = max(side, numbers.choice(_PICTURE_SIDES))
        corners = [_corner(scene, side, picture_side, numbers) for scene in scenes]
        tops, lefts = torch.tensor(corners).float().unbind(1)
        window = Window(side, side, tops, lefts)
        jitter = chance.tensors(self._seed, self.name, "jitter", step)
        return render(scenes, picture_side, picture_side, jitter, window, self._device)


def _corner(scene: Scene, side: int, picture_side: int, numbers: Any) -> tuple[int, int]:
    """Of a piece with a part of a thing in it, mostly."""
    room = picture_side - side
    if numbers.random() < 0.15:
        return numbers.randint(0, room), numbers.randint(0, room)
    thing = numbers.choice(scene.things)
    middle = [PLACES[_ROWS[word]] * picture_side - side / 2 for word in CELLS[thing.cell]]
    reach = 0.12 * picture_side + 0.25 * side
    top, left = (min(room, max(0, round(it + numbers.uniform(-reach, reach)))) for it in middle)
    return top, left


def round_trip(vae: Any, *, device: str, side: int = 256, count: int = _MEASURED) -> dict[str, float]:
    """What is left of held-out scenes after this autoencoder: PSNR in dB, and what the scorer still reads."""
    with torch.no_grad():
        numbers = chance.numbers("round trip", side)
        scenes = [draw_scene(numbers, held_out=True) for _ in range(count)]
        pictures = render(scenes, side, side, chance.tensors("round trip", side), device=device)
        found = [
            ((vae.decode(vae.encode(it[None] * 2 - 1).latent_dist.mean).sample[0] + 1) / 2).clamp(0, 1)
            for it in pictures
        ]
        square = sum(float((a - b).square().mean()) for a, b in zip(found, pictures, strict=True)) / count
        readings = [read_single(it.permute(1, 2, 0).float().cpu().numpy()) for it in found]
        scores = [agreement(scene, reading) for scene, reading in zip(scenes, readings, strict=True)]
        means = {name: sum(score[name] for score in scores) / count for name in scores[0]}
        return {"psnr": -10 * torch.tensor(max(square, 1e-10)).log10().item(), **means}
