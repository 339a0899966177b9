"""Learning-rate schedules: a linear warm-up, then a shape. Each is a factor of the optimizer's own lr, per step."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, warmup_steps: int = 0) -> LambdaLR:
    return _after_warmup(optimizer, warmup_steps, lambda step: 1.0)


def linear(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0) -> LambdaLR:
    return _after_warmup(
        optimizer, warmup_steps, lambda step: 1 - (1 - min_ratio) * _progress(step, warmup_steps, max_steps)
    )


def cosine(optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0) -> LambdaLR:
    """Half a cosine from lr to min_ratio * lr (Loshchilov & Hutter 2017, without restarts)."""

    def shape(step: int) -> float:
        return min_ratio + (1 - min_ratio) * (1 + math.cos(math.pi * _progress(step, warmup_steps, max_steps))) / 2

    return _after_warmup(optimizer, warmup_steps, shape)


def wsd(
    optimizer: Optimizer, max_steps: int, warmup_steps: int = 0, min_ratio: float = 0.0, decay_ratio: float = 0.2
) -> LambdaLR:
    """Warm-up, stable, decay (Hu et al. 2024): flat, then linear over the last `decay_ratio` of the steps."""
    decay_start = max(warmup_steps, round(max_steps * (1 - decay_ratio)))
    return _after_warmup(
        optimizer, warmup_steps, lambda step: 1 - (1 - min_ratio) * _progress(step, decay_start, max_steps)
    )


def _after_warmup(optimizer: Optimizer, warmup_steps: int, shape: Callable[[int], float]) -> LambdaLR:
    return LambdaLR(optimizer, lambda step: (step + 1) / (warmup_steps + 1) if step < warmup_steps else shape(step))


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from start to end, in [0, 1]."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
