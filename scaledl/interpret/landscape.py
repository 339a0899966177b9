"""The loss around trained weights, in random directions of the filters' own size (Li et al. 2018, arXiv:1712.09913)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def filter_normalized(parameters: list[nn.Parameter], generator: torch.Generator) -> list[Tensor]:
    """A random direction: each filter (a row of a matrix, a kernel) as long as the model's; zero for vectors.

    So a network and one that computes the same with other scales have the same slices (section 4).
    """
    found = []
    for parameter in parameters:
        if parameter.ndim < 2:  # biases and gains of norms, as in the paper's own code
            found.append(torch.zeros_like(parameter))
            continue
        random = torch.randn(parameter.shape, generator=generator).to(parameter)
        axes = tuple(range(1, parameter.ndim))
        long, own = (torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (random, parameter.detach()))
        found.append(random * own / long.clamp(min=1e-12))
    return found


@torch.no_grad()
def losses_around(
    loss: Callable[[], Tensor], parameters: list[nn.Parameter], directions: list[list[Tensor]], places: Tensor
) -> Tensor:
    """The loss (N,) at parameters + sum_k places[:, k] · directions[k], for places (N, K). They stay as they were."""
    before = [parameter.clone() for parameter in parameters]
    found = []
    try:
        for place in places.tolist():
            for number, parameter in enumerate(parameters):
                parameter.copy_(before[number])
                for far, direction in zip(place, directions, strict=True):
                    parameter.add_(direction[number], alpha=far)
            found.append(loss().double().cpu())
    finally:
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(old)
    return torch.stack(found)
