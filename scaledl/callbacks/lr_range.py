"""The learning rate grows from step to step until the loss does, too (Smith 2017, "LR range test")."""

import math
from statistics import median
from typing import Any

import lightning.pytorch as pl

DIVERGED = 4  # times the smallest smoothed loss
SMOOTHING = 0.9


class LrRange(pl.Callback):
    """Trains `num_steps` with rates from `low` to `high`, equal factors apart; all parameter groups keep their ratios.

    Every rank sees the mean loss of all, and so all of them end at the same step: when the loss is not finite, or has
    left its best far behind.

    Args:
        own: optimizer.lr of the config, the rate that the groups' rates are relative to.
    """

    def __init__(self, low: float, high: float, num_steps: int, own: float):
        self.low, self.high, self.num_steps, self.own = low, high, num_steps, own
        self.rates: list[float] = []
        self.losses: list[float] = []
        self._of_groups: dict[str, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        strategy: Any = trainer.strategy
        self._of_groups = self._of_groups or strategy.lr_of()
        rate = self.low * (self.high / self.low) ** (len(self.rates) / (self.num_steps - 1))
        strategy.set_lr({name: rate * lr / self.own for name, lr in self._of_groups.items()})
        self.rates.append(rate)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        loss = trainer.strategy.reduce(pl_module.step_metrics["loss"].float(), reduce_op="mean")
        self.losses.append(float(loss))
        path = smoothed(self.losses)
        if not math.isfinite(path[-1]) or path[-1] > min(path) + (DIVERGED - 1) * max(abs(min(path)), 1e-6):
            trainer.should_stop = True
        if len(self.losses) >= self.num_steps:
            trainer.should_stop = True


def smoothed(losses: list[float], amount: float = SMOOTHING) -> list[float]:
    """An exponential moving average whose start is corrected, as Adam's averages are."""
    found, total, weight = [], 0.0, 0.0
    for loss in losses:
        total, weight = amount * total + (1 - amount) * loss, amount * weight + (1 - amount)
        found.append(total / weight)
    return found


def suggestion(rates: list[float], losses: list[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest, over a fifth of the range; None where it does not fall.

    A fall that is no larger than the steps' own noise is none.
    """
    path = [value for value in smoothed(losses) if math.isfinite(value)]
    if not path:
        return None
    reach = max(3, len(rates) // 10)
    last = min(range(len(path)), key=path.__getitem__)
    noise = median(abs(loss - value) for loss, value in zip(losses, path, strict=False))
    if max(path[reach : last + 1], default=path[last]) - path[last] < 4 * noise:
        return None
    falls = {
        at: (path[at + reach] - path[at - reach]) / math.log(rates[at + reach] / rates[at - reach])
        for at in range(reach, min(last, len(path) - reach))
    }
    best = min(falls, key=falls.__getitem__, default=None)
    return rates[best] if best is not None and falls[best] < 0 else None
