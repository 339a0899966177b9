"""Saliency: the gradient of a score (Simonyan et al. 2014, arXiv:1312.6034)."""

import torch
from torch import Tensor

from scaledl.interpret.subject import Score


def gradient(score: Score, x: Tensor) -> Tensor:
    """How fast the score of each input x (n, ...) changes with each of its values."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(score(x).sum(), x)
    return found
