"""An exponential moving average of the weights (Polyak & Juditsky 1992), kept where the optimiser keeps its weights."""

from typing import Any

import lightning.pytorch as pl
import torch

from scaledl.distributed.gradients import local


class EMA(pl.Callback):
    """average = decay · average + (1 - decay) · weights after every step; evaluations and samples use the average.

    Each rank averages what it holds: whole parameters, shards or ZeRO's flat ranges, always in fp32. Checkpoints hold
    it, and `evaluate` and `generate` read it.

    Args:
        decay: of a step.
        warmup: step t uses min(decay, (1 + t) / (10 + t)), so that the start is soon forgotten. A target that must be
            slow from the start (BYOL's) goes without.

    Raises:
        ValueError: decay is not in [0, 1).
    """

    def __init__(self, decay: float = 0.999, warmup: bool = True):
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must lie in [0, 1)")
        self.decay, self.warmup = decay, warmup

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.start_average()  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step, strategy = trainer.global_step, trainer.strategy
        weights = [local(master.detach()).float() for master in strategy.masters()]  # type: ignore[attr-defined]
        average = [local(tensor) for tensor in strategy.average]  # type: ignore[attr-defined]
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        torch._foreach_lerp_(average, weights, 1 - decay)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.swap_average()  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.swap_average()  # type: ignore[attr-defined]
