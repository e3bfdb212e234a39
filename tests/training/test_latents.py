"""Latents are packed, placed and stepped through as the pipeline does it."""

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from training.geometry import DOWN, LATENT_CHANNELS, make_scheduler
from training.latents import draw_levels, euler_levels, packed, places, shift, unpacked


def test_patches_and_places_are_the_pipelines() -> None:
    latents = torch.randn(2, LATENT_CHANNELS, 6, 10)
    expected = FluxPipeline._pack_latents(latents, 2, LATENT_CHANNELS, 6, 10)
    assert torch.equal(packed(latents), expected)
    assert torch.equal(unpacked(expected, 6 * DOWN, 10 * DOWN), latents)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(places(6 * DOWN, 10 * DOWN, "cpu"), ids)


@pytest.mark.parametrize(("steps", "tokens"), [(1, 64), (8, 64), (20, 256), (4, 24)])
def test_noise_levels_are_the_schedulers(steps: int, tokens: int) -> None:
    scheduler = make_scheduler()
    its = scheduler.config
    mu = calculate_shift(tokens, its.base_image_seq_len, its.max_image_seq_len, its.base_shift, its.max_shift)
    assert shift(tokens) == pytest.approx(mu)
    sigmas = [1 - number / steps for number in range(steps)]
    scheduler.set_timesteps(sigmas=sigmas, mu=mu, device="cpu")
    assert euler_levels(steps, tokens) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_learning_sees_all_levels_and_the_pipelines_middle() -> None:
    levels = draw_levels(4000, 64, torch.Generator().manual_seed(1))
    assert 0 < float(levels.min()) < 0.1
    assert 0.9 < float(levels.max()) < 1
    assert float(levels.median()) == pytest.approx(euler_levels(2, 64)[1], abs=0.02)
