"""Fourth stage: the transformer learns to draw in other sizes what it draws in one.

Nothing tells a FLUX transformer how large its picture is, only each token's row and column. Trained on one
size it takes them for places, and from pictures of many sizes alone it is very slow to find out. So it is
asked halfway where in its picture each token is: some hundred steps teach it that, and right positions
follow.
"""

from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from training import chance
from training.checkpoint import Tensors, load_state, part
from training.flow import SIDE, SceneLatents, draw_guidance, drawn_well, velocity
from training.geometry import PATCH, make_transformer
from training.latents import Latents, places
from training.recipe import StageName, StageRecipe
from training.text import TextEncoders

_PLACE_WEIGHT: Final = 0.5
_MEASURED_SIZES: Final = ((SIDE, SIDE), (128, 128), (512, 512), (256, 384))
"""Heights and widths."""
_MEASURED: Final = 32


class Placed(nn.Module):  # type: ignore[misc]
    """A transformer, and a reader of what its tokens know halfway of their places."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = make_transformer()
        width = self.transformer.inner_dim
        self.place = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2))
        self._halfway: Any = None
        self.transformer.transformer_blocks[-1].register_forward_hook(self._keep)

    def _keep(self, _block: Any, _given: Any, made: Any) -> None:
        _, self._halfway = made

    def place_loss(self, height: int, width: int) -> Any:
        """Of the tokens of the last pictures; rows and columns count from -1 to 1."""
        found = self.place(self._halfway).float()
        self._halfway = None
        sides = torch.tensor([height, width], device=found.device) / PATCH
        wanted = (2 * places(height, width, found.device)[:, 1:] + 1) / sides - 1
        return functional.mse_loss(found, wanted.expand_as(found))


def transformer_weights(weights: Tensors) -> Tensors:
    """Of the transformer alone, from the stage's result."""
    return part(weights, "transformer")


class SizesStage:
    name: StageName = "sizes"

    def __init__(
        self,
        recipe: StageRecipe,
        latents: Latents,
        text: TextEncoders,
        begun: Tensors,
        *,
        seed: int,
        device: str,
    ) -> None:
        """`begun`: the transformer, as the flow has left it."""
        self.recipe = recipe
        self._latents = latents
        self._device = device
        self._seed = seed
        self._batches = SceneLatents(recipe, latents, text, seed=seed, device=device, name=self.name)
        torch.manual_seed(seed)
        self.trained = Placed().to(device)
        load_state(self.trained.transformer, begun)

    def losses(self, step: int) -> dict[str, Any]:
        batch = self._batches.batch(step)
        draw = chance.tensors(self._seed, self.name, "guidance", step)
        guidance = draw_guidance(len(batch.levels), draw).to(self._device)
        found = velocity(self.trained.transformer, batch, batch.noisy, guidance)
        flow = functional.mse_loss(found.float(), batch.velocity)
        place = self.trained.place_loss(batch.height, batch.width)
        return {"loss": flow + _PLACE_WEIGHT * place, "flow": flow, "place": place}

    def measure(self, weights: Tensors) -> dict[str, float]:
        """The part of held-out scenes of which the scorer finds all right, by size."""
        transformer = make_transformer().to(self._device).eval()
        load_state(transformer, transformer_weights(weights))
        return {
            f"all_{width}x{height}": drawn_well(
                transformer,
                self._batches,
                self._latents,
                device=self._device,
                height=height,
                width=width,
                count=_MEASURED,
            )["all"]
            for height, width in _MEASURED_SIZES
        }
