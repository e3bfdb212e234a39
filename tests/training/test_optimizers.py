"""Muon's steps, and which weights take them."""

import torch

from training.geometry import make_transformer
from training.optimizers import Muon, optimizers_for, orthogonal
from training.recipe import StageRecipe


def test_a_step_turns_no_direction_down() -> None:
    draw = torch.Generator().manual_seed(1)
    for shape in ((24, 64), (64, 24), (32, 32)):
        # Singular values from 1 down to a hundredth.
        left = torch.linalg.qr(torch.randn(shape[0], min(shape), generator=draw)).Q
        right = torch.linalg.qr(torch.randn(shape[1], min(shape), generator=draw)).Q
        matrix = left @ torch.diag(torch.logspace(0, -2, min(shape))) @ right.T
        values = torch.linalg.svdvals(orthogonal(matrix))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_a_matrix_is_learnt() -> None:
    draw = torch.Generator().manual_seed(2)
    wanted = torch.randn(16, 8, generator=draw)
    found = torch.nn.Parameter(torch.zeros(16, 8))
    optimizer = Muon([found], lr=0.2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        found.grad = (found - wanted).detach()
        optimizer.step()
    assert (found - wanted).norm() < 0.05 * wanted.norm()


def test_each_weight_has_one_optimizer() -> None:
    transformer = make_transformer()
    for muon, count in ((False, 1), (True, 2)):
        optimizers = optimizers_for(transformer, StageRecipe(steps=1, batch=1, rate=1e-3, muon=muon))
        parameters = [it for one in optimizers for group in one.param_groups for it in group["params"]]
        assert len(optimizers) == count
        assert len(parameters) == len(set(parameters)) == len(list(transformer.parameters()))
    assert all(it.ndim == 2 for group in optimizers[1].param_groups for it in group["params"])
