"""SHAP values: a fair share in a score (Shapley 1953; Lundberg & Lee 2017, arXiv:1705.07874), by captum."""

import torch
from torch import Tensor

from scaledl.interpret.subject import ROWS, Subject

EXACT = 6  # regions, which have 720 orders


def shapley(subject: Subject, seed: int = 0, num_orders: int = 25) -> Tensor:
    """The mean of what each region (*regions.shape) adds to the score, over the orders in which regions may come.

    Over all orders for at most EXACT regions, else over `num_orders` random ones (Castro et al. 2009); the sum over the
    regions is the difference of the score from the baseline's in both cases.
    """
    from captum.attr import ShapleyValues, ShapleyValueSampling

    regions = subject.regions
    count = int(regions.max()) + 1
    settings = {"baselines": subject.baseline, "feature_mask": regions[None], "perturbations_per_eval": ROWS}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        if count <= EXACT:
            found = ShapleyValues(subject.score).attribute(subject.x, **settings)
        else:
            found = ShapleyValueSampling(subject.score).attribute(subject.x, n_samples=num_orders, **settings)
    first = tuple(slice(0, size) for size in regions.shape)  # a region's value stands at each of its places
    return found[0][first]
