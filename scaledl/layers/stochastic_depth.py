"""Residual branches that are left out at random."""

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Leaves a residual branch out with probability p, each sample for itself (Huang et al. 2016, arXiv:1603.09382).

    In training, what is kept is divided by 1 - p: the expected sum is that of an evaluation, which keeps all.

    Raises:
        ValueError: if p is not in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"path_dropout={p} must lie in [0, 1); 0 keeps every residual branch")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.p  # (B, 1, ...)
        return x * kept / (1 - self.p)
