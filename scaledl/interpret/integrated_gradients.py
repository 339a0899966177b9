"""Integrated gradients: a score's rise from a baseline, shared out (Sundararajan et al. 2017, arXiv:1703.01365)."""

import numpy as np
import torch
from torch import Tensor

from scaledl.interpret.saliency import gradient
from scaledl.interpret.subject import ROWS, Score, scores

STEPS = (64, 128, 256, 512)  # more are taken until the sum fits


def integrated_gradients(score: Score, x: Tensor, baseline: Tensor, tolerance: float = 0.01) -> tuple[Tensor, Tensor]:
    """(x - b) times the mean gradient on the line from b to x (eq. 1), for one x (1, ...); and score(x) - score(b).

    The sum of the first is the second (completeness, proposition 1). The integral is by Gauss and Legendre's rule, with
    more points until the sum is right to `tolerance` of the difference, or there are 512.
    """
    after, before = scores(score, torch.cat((x, baseline)))
    for steps in STEPS:
        points, weights = (torch.from_numpy(part).to(x) / 2 for part in np.polynomial.legendre.leggauss(steps))
        places, weights = (part.view(-1, *(1 for _ in x.shape[1:])) for part in (points + 0.5, weights))
        mean = torch.zeros_like(x[0])
        for place, share in zip(places.split(ROWS), weights.split(ROWS), strict=True):
            mean += (share * gradient(score, baseline + place * (x - baseline))).sum(0)
        found = (x - baseline)[0] * mean
        if (found.sum() - (after - before)).abs() <= tolerance * (after - before).abs():
            break
    return found, after - before
