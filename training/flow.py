"""Third stage: the transformer learns to go from noise to a scene's latents, in pictures of one size.

By flow matching (Lipman et al. 2022). The encoders and the autoencoder stand still. Scenes are drawn and
encoded a few hundred at a time (a shard), and each is used several times, with other words, noise and levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.captions import caption
from training.checkpoint import Tensors, load_state
from training.geometry import PATCH, make_transformer
from training.latents import Latents, draw_levels, euler_levels, packed, places, unpacked
from training.recipe import StageName, StageRecipe
from training.renderer import render
from training.scenes import Scene, draw_scene
from training.scorer import agreement, read
from training.text import TextEncoders

GUIDANCES: Final = (1.0, 5.0)
"""The range in which guidance is learnt."""
SIDE: Final = 256
_SHARD_STEPS: Final = 64
_USES: Final = 8
"""Of each scene in its shard."""
_PAIRS: Final = 0.2
_UNSAID: Final = 0.25
_TERSE: Final = 0.3
"""Of the captions: people say little, and then mean one thing."""
_NO_CAPTION: Final = 0.1
_SIDES: Final = range(128, 512 + 1, PATCH)
"""Of pictures of other sizes."""
_SQUARE: Final = 0.5
"""The part of the other sizes that are."""
_LONG_MAX: Final = 2.0
"""Times as long as wide."""
_SIZES: Final = 8
"""Other ones in a shard."""
_MEASURED: Final = 64
_MEASURED_STEPS: Final = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Scenes of one picture size."""

    height: int
    width: int
    scenes: list[Scene]
    latents: Any


@dataclass(frozen=True, slots=True)
class Batch:
    height: int
    width: int
    latents: Any
    """Packed, without noise."""
    states: Any
    pooled: Any
    noise: Any
    levels: Any

    @property
    def noisy(self) -> Any:
        levels = self.levels[:, None, None]
        return (1 - levels) * self.latents + levels * self.noise

    @property
    def velocity(self) -> Any:
        return self.noise - self.latents


class SceneLatents:
    """Endless batches of captioned latents, all by their step's number."""

    def __init__(
        self,
        recipe: StageRecipe,
        latents: Latents,
        text: TextEncoders,
        *,
        seed: int,
        device: str,
        name: StageName,
    ) -> None:
        self._recipe = recipe
        self._latents = latents
        self._text = text
        self._seed = seed
        self._device = device
        self._name = name
        self._shard = -1
        self._groups: list[Group] = []

    def batch(self, step: int, no_caption: float = _NO_CAPTION) -> Batch:
        self._turn_to(step // _SHARD_STEPS)
        numbers = chance.numbers(self._seed, self._name, step)
        draw = chance.tensors(self._seed, self._name, "noise", step)
        others = len(self._groups) > 1 and numbers.random() < self._recipe.other_sizes
        group = numbers.choice(self._groups[1:]) if others else self._groups[0]
        tokens = group.height * group.width // PATCH**2
        count = max(1, self._recipe.batch * (SIDE // PATCH) ** 2 // tokens)
        chosen = [numbers.randrange(len(group.scenes)) for _ in range(count)]
        captions = [
            "" if numbers.random() < no_caption else caption(group.scenes[it], numbers, terse=_TERSE)
            for it in chosen
        ]
        states, pooled = self.encode(captions)
        latents = packed(group.latents[chosen])
        noise = torch.randn(latents.shape, generator=draw).to(self._device)
        levels = draw_levels(count, tokens, draw).to(self._device)
        return Batch(group.height, group.width, latents, states, pooled, noise, levels)

    def encode(self, captions: Sequence[str]) -> tuple[Any, Any]:
        with torch.no_grad():
            return self._text(captions)  # type: ignore[no-any-return]

    def _turn_to(self, shard: int) -> None:
        if shard == self._shard:
            return
        numbers = chance.numbers(self._seed, self._name, "shard", shard)
        count = max(1, self._recipe.batch * _SHARD_STEPS // _USES)
        sizes = [(SIDE, SIDE, count)]
        if self._recipe.other_sizes:
            for height, width in (_draw_size(numbers) for _ in range(_SIZES)):
                sizes.append((height, width, max(1, count // _SIZES * SIDE**2 // (height * width))))
        self._groups = [
            self._group(
                shard,
                number,
                height,
                width,
                [draw_scene(numbers, pairs=_PAIRS, unsaid=_UNSAID) for _ in range(many)],
            )
            for number, (height, width, many) in enumerate(sizes)
        ]
        self._shard = shard

    def _group(self, shard: int, number: int, height: int, width: int, scenes: list[Scene]) -> Group:
        jitter = chance.tensors(self._seed, self._name, "jitter", shard, number)
        made = []
        for start in range(0, len(scenes), 16):
            pictures = render(scenes[start : start + 16], height, width, jitter, device=self._device)
            made.append(self._latents.encode(pictures))
        return Group(height, width, scenes, torch.cat(made))


def _draw_size(numbers: Random) -> tuple[int, int]:
    """Height and width of a picture that is not of the size to be good at."""
    is_square = numbers.random() < _SQUARE
    while True:
        height = numbers.choice(_SIDES)
        width = height if is_square else numbers.choice(_SIDES)
        fits = height != SIDE if is_square else height != width
        if fits and max(height, width) <= _LONG_MAX * min(height, width):
            return height, width


class FlowStage:
    name: StageName = "flow"

    def __init__(
        self, recipe: StageRecipe, latents: Latents, text: TextEncoders, *, seed: int, device: str
    ) -> None:
        self.recipe = recipe
        self._latents = latents
        self._device = device
        self._batches = SceneLatents(recipe, latents, text, seed=seed, device=device, name=self.name)
        self._seed = seed
        torch.manual_seed(seed)
        self.trained: nn.Module = make_transformer().to(device)

    def losses(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch(step)
        draw = chance.tensors(self._seed, self.name, "guidance", step)
        # Without a meaning yet: the transformer learns not to mind it.
        guidance = draw_guidance(len(batch.levels), draw).to(self._device)
        found = velocity(self.trained, batch, batch.noisy, guidance)
        return {"loss": functional.mse_loss(found.float(), batch.velocity)}

    def measure(self, weights: Tensors) -> dict[str, float]:
        """The scorer's opinion of held-out scenes."""
        transformer = make_transformer().to(self._device).eval()
        load_state(transformer, weights)
        return drawn_well(transformer, self._batches, self._latents, device=self._device)


def velocity(transformer: Any, batch: Batch, noisy: Any, guidance: Any) -> Any:
    return transformer(
        hidden_states=noisy,
        encoder_hidden_states=batch.states,
        pooled_projections=batch.pooled,
        timestep=batch.levels,
        guidance=guidance,
        img_ids=places(batch.height, batch.width, noisy.device),
        txt_ids=torch.zeros(batch.states.shape[1], 3, device=noisy.device),
        return_dict=False,
    )[0]


def draw_guidance(count: int, numbers: Any) -> Any:
    low, high = GUIDANCES
    return low + (high - low) * torch.rand(count, generator=numbers)


def drawn_well(
    transformer: Any,
    batches: SceneLatents,
    latents: Latents,
    *,
    device: str,
    height: int = SIDE,
    width: int = SIDE,
    count: int = _MEASURED,
    guidance: float = 3.5,
) -> dict[str, float]:
    """The part of held-out scenes with one thing whose pictures are right, by property."""
    with torch.no_grad():
        numbers = chance.numbers("measured")
        scenes = [draw_scene(numbers, held_out=True) for _ in range(count)]
        states, pooled = batches.encode([caption(scene, numbers) for scene in scenes])
        tokens = height * width // PATCH**2
        draw = chance.tensors("measured")
        noise = torch.randn((count, tokens, transformer.config.in_channels), generator=draw).to(device)
        levels = euler_levels(_MEASURED_STEPS, tokens)
        state = noise
        for level, following in pairwise(levels):
            batch = Batch(
                height, width, state, states, pooled, noise, torch.full((count,), level, device=device)
            )
            state = state + (following - level) * velocity(
                transformer, batch, state, torch.full((count,), guidance, device=device)
            )
        pictures = latents.decode(unpacked(state, height, width)).permute(0, 2, 3, 1).cpu().numpy()
        scores = [agreement(scene, read(it, scene)) for scene, it in zip(scenes, pictures, strict=True)]
        return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}
