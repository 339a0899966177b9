"""Restricted Boltzmann machine: visible and hidden units, joined but not among themselves."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.precision import without_autocast


class RBM(nn.Module):
    """Binary units with the energy -v·b - h·c - h·W v (Smolensky 1986; Hinton 2002), in which v may lie in [0, 1].

    All goes through `forward`, which strategies know: they gather parameters around it.

    Raises:
        ValueError: if x does not have in_dim values.
    """

    def __init__(self, in_dim: int, hidden_dim: int, init_std: float = 0.01) -> None:
        super().__init__()
        self.in_dim, self.num_features, self.init_std = in_dim, hidden_dim, init_std
        self.weight = nn.Parameter(torch.empty(hidden_dim, in_dim))
        self.visible_bias, self.hidden_bias = nn.Parameter(torch.empty(in_dim)), nn.Parameter(torch.empty(hidden_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)
        nn.init.zeros_(self.visible_bias)
        nn.init.zeros_(self.hidden_bias)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Free energy (B, 1) of x (B, ...): -v·b - sum softplus(c + W v).

        With uniform numbers (B, hidden_dim), by which the hidden units are drawn, the visible units' probabilities
        (B, in_dim) after them: half a step of Gibbs sampling.
        """
        with without_autocast(x):  # in bf16, energies of some tens are half a nat apart
            v, h = self._units(x)
            weight, bias = _exact(self.weight), _exact(self.visible_bias)
            if uniform is not None:
                return F.linear((uniform < h.sigmoid()).type_as(v), weight.T, bias).sigmoid()
            return -(v @ bias + F.softplus(h).sum(1)).unsqueeze(1)

    def forward_features(self, x: Tensor) -> Tensor:
        """The hidden units' probabilities (B, num_features)."""
        with without_autocast(x):
            return self._units(x)[1].sigmoid()

    def _units(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Visible units (B, in_dim), and what drives the hidden ones (B, hidden_dim)."""
        v = _exact(x.flatten(1))
        if v.shape[1] != self.in_dim:
            raise ValueError(f"x has {v.shape[1]} values a sample, but in_dim={self.in_dim}: make it that of the data")
        return v, F.linear(v, _exact(self.weight), _exact(self.hidden_bias))


def _exact(x: Tensor) -> Tensor:
    """In fp32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
