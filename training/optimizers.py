"""What changes a stage's weights: AdamW, and for a transformer's matrices Muon where the recipe says so.

From one checkpoint of the flow, Muon came within 200 steps to a loss that AdamW needed a thousand more for.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import nn

from training.checkpoint import CheckpointUnusable, Tensors, differences
from training.recipe import StageRecipe

_BETAS: Final = (0.9, 0.98)
_WEIGHT_DECAY: Final = 1e-3
_MOMENTUM: Final = 0.95
_ITERATIONS: Final = 5
_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, from Jordan et al. 2024."""
_AS_LARGE_AS_ADAMW: Final = 0.2
"""Times the root of the longer side (Liu et al. 2025): with it both can have one rate."""


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Momentum whose steps are made orthogonal (Jordan et al. 2024), for matrices.

    torch's own computes in bf16, which takes a CPU without such units longer than all the rest of a step.
    """

    def __init__(self, parameters: Iterable[Any], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, _closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._change(parameter, group["lr"])

    def _change(self, parameter: Any, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - _MOMENTUM)
        step = orthogonal(parameter.grad.lerp(momentum, _MOMENTUM))
        parameter.mul_(1 - rate * _WEIGHT_DECAY)
        parameter.add_(step, alpha=-rate * _AS_LARGE_AS_ADAMW * math.sqrt(max(parameter.shape)))


def orthogonal(matrix: Any) -> Any:
    """Nearly the orthogonal matrix nearest to this one: singular values become 0.7 to 1.2."""
    first, third, fifth = _COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if is_tall else matrix
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = found @ found.T
        found = first * found + (third * square + fifth * (square @ square)) @ found
    return found.T if is_tall else found


def optimizers_for(module: nn.Module, recipe: StageRecipe) -> list[Any]:
    """One or two, with each parameter in one of them."""
    matrices: list[Any] = []
    others: list[Any] = []
    for name, parameter in module.named_parameters():
        is_matrix = recipe.muon and parameter.ndim == 2 and "blocks." in name
        (matrices if is_matrix else others).append(parameter)
    found: list[Any] = [torch.optim.AdamW(others, lr=recipe.rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY)]
    return [*found, Muon(matrices, recipe.rate)] if matrices else found


def states_of(optimizers: Iterable[Any], module: nn.Module) -> Tensors:
    """By what it is and the parameter's name, as `momentum.NAME`."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"{key}.{names[parameter]}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_states(optimizers: Iterable[Any], module: nn.Module, tensors: Tensors) -> None:
    """What `states_of` gave. Raises `CheckpointUnusable` if it was of other optimizers, or of none."""
    parameters = dict(module.named_parameters())
    keys = {
        f"{key}.{name}"
        for optimizer in optimizers
        for name, parameter in parameters.items()
        if any(parameter is one for group in optimizer.param_groups for one in group["params"])
        for key in (("momentum",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq", "step"))
    }
    if keys != set(tensors):
        raise CheckpointUnusable(f"states of other optimizers: {differences(keys, tensors)}")
    for optimizer in optimizers:
        own = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for full_name, value in tensors.items():
            key, _, name = full_name.partition(".")
            parameter = parameters[name]
            if parameter in own:
                # AdamW counts its steps on the CPU.
                optimizer.state[parameter][key] = value.to(parameter.device) if value.ndim else value
