"""Integrated gradients: a score's rise from a baseline, shared out (Sundararajan et al. 2017, arXiv:1703.01365)."""

import numpy as np
import torch
from torch import Tensor

from scaledl.interpret.saliency import gradient
from scaledl.interpret.subject import ROWS, Score, scores

STEPS = (64, 256, 1024)  # more are taken until the sum fits


def integrated_gradients(score: Score, x: Tensor, baseline: Tensor, tolerance: float = 0.01) -> tuple[Tensor, Tensor]:
    """(x - b) times the mean gradient on the line from b to x (eq. 1), for one x (1, ...); and score(x) - score(b).

    The sum of the first is the second (completeness, proposition 1). The integral is Gauss and Legendre's, in t with
    the place on the line t³, which has more points near the baseline: there a norm layer turns fast. Its points are
    made more until the sum is right to `tolerance` of the difference, or there are 1,024.
    """
    after, before = scores(score, torch.cat((x, baseline)))
    difference = after - before
    for steps in STEPS:
        points, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(steps))
        t = (points + 1) / 2
        places = (t**3).to(x).view(-1, *(1 for _ in x.shape[1:]))
        weights = (3 * t**2 * weights / 2).to(x).view_as(places)
        mean = sum(
            (share * gradient(score, baseline + place * (x - baseline))).sum(0)
            for place, share in zip(places.split(ROWS), weights.split(ROWS), strict=True)
        )
        found = (x[0] - baseline[0]) * mean
        if (found.sum() - difference).abs() <= tolerance * difference.abs():
            break
    return found, difference
