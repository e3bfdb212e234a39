"""What the transformer is asked about places, and the sizes that it sees."""

import random

import pytest
import torch
from torch import nn

from training import flow, sizes
from training.autoencoder import untrained_vae
from training.checkpoint import state_of
from training.flow import SIDE
from training.geometry import PATCH, make_transformer
from training.latents import Latents
from training.recipe import PROFILES
from training.sizes import Placed, SizesStage, transformer_weights
from training.text import TextEncoders


def test_a_place_is_asked_for_as_a_part_of_the_picture() -> None:
    """Two rows and one column: their middles are at a quarter and three quarters, and in the middle."""
    placed = Placed()
    placed.place = nn.Identity()
    right = torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]])
    for found, loss in ((right, 0.0), (right + 1.0, 1.0), (right.flip(1), 0.5)):
        placed._halfway = found
        assert float(placed.place_loss(2 * PATCH, PATCH)) == pytest.approx(loss)


def test_it_is_asked_of_the_tokens_of_the_picture() -> None:
    placed = Placed()
    tokens, words = 6, 4
    with torch.no_grad():
        placed.transformer(
            hidden_states=torch.zeros(1, tokens, placed.transformer.config.in_channels),
            encoder_hidden_states=torch.zeros(1, words, 128),
            pooled_projections=torch.zeros(1, 128),
            timestep=torch.ones(1),
            guidance=torch.ones(1),
            img_ids=torch.zeros(tokens, 3),
            txt_ids=torch.zeros(words, 3),
        )
    assert placed._halfway.shape == (1, tokens, placed.transformer.inner_dim)


def test_only_the_transformer_goes_on() -> None:
    kept = transformer_weights(state_of(Placed()))
    assert kept.keys() == state_of(make_transformer()).keys()


def test_every_size_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_MEASURED_SIZES", ((64, 64), (32, 64)))
    monkeypatch.setattr(sizes, "_MEASURED", 1)
    latents, text = Latents(untrained_vae(7), 0.1, 0.9), TextEncoders().eval()
    stage = SizesStage(
        PROFILES["tiny"]["sizes"], latents, text, state_of(make_transformer()), seed=1, device="cpu"
    )
    assert stage.measure(state_of(stage.trained)).keys() == {"all_64x64", "all_64x32"}


def test_other_sizes_are_squares_and_others_of_up_to_two_to_one() -> None:
    numbers = random.Random("sizes")
    drawn = [flow._draw_size(numbers) for _ in range(3000)]
    assert {side for size in drawn for side in size} == set(range(128, 513, 32))
    assert (SIDE, SIDE) not in drawn
    assert all(max(size) <= 2 * min(size) for size in drawn)
    assert sum(height == width for height, width in drawn) / len(drawn) == pytest.approx(0.5, abs=0.05)
