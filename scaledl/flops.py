"""How many floating-point operations a training sample costs, counted without computing any."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scaledl.distributed.noise import Noise
from scaledl.tasks.base import Task


def flops_of_sample(task: Task, batch: dict[str, Tensor]) -> int | None:
    """Operations of the matrix products and convolutions of one sample's objective, forward and backward.

    A multiplication and its addition are two. Norms, activations and the optimiser are left out, as is what activation
    checkpointing computes twice, and attention counts all pairs of tokens, causal or not: the convention of "model
    FLOPs" (Chowdhery et al. 2022, appendix B), for a transformer 6 · N + 12 · depth · dim · T a token of T, N being the
    parameters less those of embeddings that are only looked up.

    Args:
        batch: of one sample, on any device; only its shapes matter.

    Returns:
        None where an objective needs values that tensors without memory do not have.
    """
    task.model = task.model_builder.on_meta().train()
    task.noise = Noise(task.model_builder.seed, torch.zeros(1, dtype=torch.int64, device="meta"))
    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.enable_grad():
            task.objective({name: tensor[:1].to("meta") for name, tensor in batch.items()})["loss"].backward()
    except (NotImplementedError, RuntimeError, ValueError):
        return None
    finally:
        task.model = task.noise = None  # type: ignore[assignment]
    return int(counter.get_total_flops())


def usual_sample(train_set: Any) -> dict[str, Tensor]:
    """A batch of the one sample whose length is nearest the mean; the first where all are alike."""
    lengths = _lengths(train_set)
    return train_set.__getitems__(np.abs(lengths - lengths.mean()).argmin(keepdims=True))


def longest_sample(train_set: Any) -> dict[str, Tensor]:
    """A batch of the longest sample alone."""
    return train_set.__getitems__(_lengths(train_set).argmax(keepdims=True))


def _lengths(train_set: Any) -> np.ndarray:
    return train_set.lengths(np.arange(len(train_set))) if hasattr(train_set, "lengths") else np.zeros(1)


def utilization(flops_per_sample: int | None, samples_per_second: float | None, peak: float | None) -> float | None:
    """Model FLOPs utilisation: the share of `peak` FLOP/s, of all devices together, that training makes use of."""
    known: Any = flops_per_sample and samples_per_second and peak
    return flops_per_sample * samples_per_second / peak if known else None  # type: ignore[operator]
