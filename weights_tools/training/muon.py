"""Muon: momentum whose direction is made orthogonal, for the weights of hidden layers; the rest stays with AdamW.

Jordan et al., "Muon" (2024), with the scale of Liu et al., arXiv 2502.16982, by which one learning rate serves both.
On the autoencoder it needs half the updates of AdamW.
"""

# PyTorch gives its results as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call, untyped-decorator, misc"

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from weights_tools.training import workers
from weights_tools.training.stage import LoopConfig, adamw

_MOMENTUM = 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_ADAM_RMS = 0.2  # the usual size of AdamW's updates at learning rate 1
_MIN_ROWS = 4  # weights from or to the colours of a picture stay with AdamW


class Muon(torch.optim.Optimizer):
    """Updates weights of two or more dimensions, taken as matrices of (outputs, all else)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update from the gradients at hand; `closure` must be None."""
        if closure is not None:
            raise NotImplementedError("Muon takes no closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = self._ahead(parameters)
            alike = list(_alike(directions).values())
            for places in alike:
                mine = places[workers.rank() :: workers.count()]
                for place in set(places).difference(mine):
                    directions[place] = torch.zeros_like(directions[place])
                if mine:
                    found = orthogonal(torch.stack([directions[place] for place in mine]))
                    for place, direction in zip(mine, found, strict=True):
                        directions[place] = direction
            workers.sum_over(directions)
            for places in alike:
                scale = _ADAM_RMS * max(directions[places[0]].shape) ** 0.5
                targets = [parameters[place] for place in places]
                found = [directions[place].view_as(parameters[place]) for place in places]
                torch._foreach_add_(targets, found, alpha=-group["lr"] * scale)

    def _ahead(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Nesterov's momenta of the gradients, as matrices."""
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        return [ahead.flatten(1) for ahead in torch._foreach_lerp(gradients, momenta, _MOMENTUM)]


def _alike(matrices: Sequence[Tensor]) -> dict[torch.Size, list[int]]:
    """Where matrices of each shape are: an accelerator takes all of one shape in the time of one."""
    places: dict[torch.Size, list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(matrix.shape, []).append(place)
    return places


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices whose singular values are all alike (0.7 to 1.2), by Newton-Schulz steps.

    `matrices` is (..., rows, columns). The steps are polynomials of the square x x^T, so that only they, the smaller
    matrices, are iterated, and x is multiplied once by the product of all.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    square = x @ x.mT
    product = step = _polynomial(square)
    for _ in range(_NEWTON_SCHULZ_STEPS - 1):
        square = step @ square @ step
        step = _polynomial(square)
        product = step @ product
    x = product @ x
    return x.mT if is_tall else x


def _polynomial(square: Tensor) -> Tensor:
    """One Newton-Schulz step as a matrix: a + b square + c square^2."""
    a, b, c = _NEWTON_SCHULZ
    step = b * square + c * (square @ square)
    step.diagonal(dim1=-2, dim2=-1).add_(a)
    return step


def muon_and_adamw(module: torch.nn.Module, config: LoopConfig) -> dict[str, Any]:
    """Optimizers by name: Muon for convolutions and linear layers between hidden channels, AdamW for the rest.

    Embeddings, of which a batch touches a few rows, are no matrices in this sense.

    What is frozen is left out.
    """
    hidden: list[Tensor] = []
    rest: list[Tensor] = []
    embeddings = {part.weight for part in module.modules() if isinstance(part, torch.nn.Embedding)}
    for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
        is_matrix = parameter.dim() > 1 and min(parameter.shape[:2]) >= _MIN_ROWS
        is_hidden = is_matrix and parameter not in embeddings
        (hidden if is_hidden else rest).append(parameter)
    return {"muon": Muon(hidden, config.learning_rate), "adamw": adamw(rest, config)}
