"""LIME: a linear model that imitates a score near one sample (Ribeiro et al. 2016, arXiv:1602.04938), by captum."""

import torch
from torch import Tensor

from scaledl.interpret.subject import ROWS, Subject


def lime(subject: Subject, seed: int = 0, num_samples: int = 1000) -> Tensor:
    """The weight of each region (*regions.shape) in a ridge regression of the score on which regions are there.

    Inputs with half of the regions taken away, at random, weigh by their cosine distance from the sample.
    """
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = Lime(subject.score, interpretable_model=SkLearnRidge(alpha=1.0)).attribute(
            subject.x,
            baselines=subject.baseline,
            feature_mask=subject.regions[None],
            n_samples=num_samples,
            perturbations_per_eval=ROWS,
            return_input_shape=False,
        )
    return weights.flatten().to(subject.x)[subject.regions]
