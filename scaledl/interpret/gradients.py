"""Which layers a sample would change."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def gradient_sizes(model: nn.Module, losses: list[Callable[[], Tensor]]) -> tuple[list[str], Tensor]:
    """The model's matrices by name, and the root mean square of the gradient (matrices, losses) of each loss."""
    matrices = {name: p for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad}
    columns = []
    for loss in losses:
        with torch.enable_grad():
            slopes = torch.autograd.grad(loss(), list(matrices.values()), allow_unused=True)
        columns.append(
            torch.stack([torch.tensor(0.0) if s is None else s.float().square().mean().sqrt().cpu() for s in slopes])
        )
    return list(matrices), torch.stack(columns, 1)
