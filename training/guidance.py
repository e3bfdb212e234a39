"""Fifth stage: one pass learns what two passes with classifier-free guidance say (Meng et al. 2022).

The teacher is what the earlier stages made, and stands still; the guidance that a caller asks for becomes an
input.
"""

from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.checkpoint import Tensors, load_state
from training.flow import Batch, SceneLatents, draw_guidance, drawn_well, velocity
from training.geometry import make_transformer
from training.latents import Latents
from training.recipe import StageName, StageRecipe
from training.text import TextEncoders

_STRENGTH: Final = 0.2
"""Of what a caller asks for beyond 1. With the whole of it colours went over into their neighbours: 90 % of
300 were right at guidance 3.5, 99 % without any."""


class GuidanceStage:
    name: StageName = "guidance"

    def __init__(
        self,
        recipe: StageRecipe,
        latents: Latents,
        text: TextEncoders,
        teacher: Tensors,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.recipe = recipe
        self._latents = latents
        self._device = device
        self._seed = seed
        self._batches = SceneLatents(recipe, latents, text, seed=seed, device=device, name=self.name)
        self._teacher = make_transformer().to(device).eval().requires_grad_(requires_grad=False)
        load_state(self._teacher, teacher)
        self.trained: nn.Module = make_transformer().to(device)
        load_state(self.trained, teacher)

    def losses(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch(step, no_caption=0.0)
        guidance = draw_guidance(
            len(batch.levels), chance.tensors(self._seed, self.name, "guidance", step)
        ).to(self._device)
        found = velocity(self.trained, batch, batch.noisy, guidance)
        return {"loss": functional.mse_loss(found.float(), self._guided(batch, guidance))}

    def measure(self, weights: Tensors) -> dict[str, float]:
        """The scorer's opinion of held-out scenes."""
        transformer = make_transformer().to(self._device).eval()
        load_state(transformer, weights)
        return drawn_well(transformer, self._batches, self._latents, device=self._device)

    def _guided(self, batch: Batch, guidance: Any) -> Any:
        """What the teacher says, with and without the caption, and from the one beyond the other."""
        with torch.no_grad():
            states, pooled = self._batches.encode([""])
            without = replace(
                batch, states=states.expand_as(batch.states), pooled=pooled.expand_as(batch.pooled)
            )
            asked = velocity(self._teacher, batch, batch.noisy, guidance).float()
            idle = velocity(self._teacher, without, batch.noisy, guidance).float()
            return asked + _STRENGTH * (guidance[:, None, None] - 1) * (asked - idle)
