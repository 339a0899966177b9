"""Normalisation over the feature axis, by name."""

from typing import Literal

from torch import nn

NormName = Literal["layernorm", "rmsnorm"]


def make_norm(norm: NormName, dim: int, eps: float, bias: bool, affine: bool = True) -> nn.Module:
    """LayerNorm (Ba et al. 2016, arXiv:1607.06450) or RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467).

    RMSNorm neither centres nor shifts, so `bias` concerns LayerNorm only. affine: with a gain (and bias) of its own.
    """
    if norm == "rmsnorm":
        return nn.RMSNorm(dim, eps=eps, elementwise_affine=affine)
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=affine, bias=bias)
