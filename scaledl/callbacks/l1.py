"""L1 regularisation that makes weights exactly zero: a proximal step after each step of the optimiser."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.callbacks.metrics import Metrics


class L1(pl.Callback):
    """w = sign(w) · max(|w| - lr · strength, 0) after every step, for matrices and kernels (Daubechies et al. 2004).

    With SGD that is proximal gradient descent on loss + strength · Σ|w|; other optimisers leave the penalty out of
    their scaling, as AdamW does with weight decay. Each rank shrinks what it updates: whole parameters, shards or
    ZeRO's flat ranges, which ZeRO then gathers once more. The share of these weights that are zero is logged as
    `val/zeros`.

    Args:
        strength: of the penalty, beside a loss that is a mean.

    Raises:
        ValueError: strength is not above 0.
    """

    def __init__(self, strength: float):
        if strength <= 0:
            raise ValueError(f"callbacks.l1.strength={strength} must be above 0; ~callbacks.l1 leaves the penalty out")
        self.strength = strength
        self._lr: dict[str, float] = {}
        self._parts: list[tuple[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self._lr = trainer.strategy.lr_of()  # type: ignore[attr-defined]  # the schedule goes on before the batch ends

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        strategy: Any = trainer.strategy
        self._parts = self._parts or _matrices(strategy)
        left_out = strategy.step_report()[1]
        strength = torch.where(left_out, 0.0, self.strength)
        for name, part in self._parts:
            bound = (strength * self._lr[name]).to(part)
            part.sub_(part.clamp(-bound, bound))
        strategy.refresh()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        strategy: Any = trainer.strategy
        parts = [part for _, part in self._parts or _matrices(strategy)]
        counts = [sum(int((part == 0).sum()) for part in parts), sum(part.numel() for part in parts)]
        counts = torch.tensor(counts, dtype=torch.float64, device=strategy.root_device)
        zeros, total = strategy.reduce(counts, reduce_op="sum").tolist()  # copies of a weight count in both
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Metrics):
                callback.record(trainer, {"val/zeros": zeros / total})


def _matrices(strategy: Any) -> list[tuple[str, Tensor]]:
    """What this rank updates of parameters with two axes or more: views on the optimiser's own memory."""
    pieces = strategy.pieces(list(strategy.masters()))
    return [(name, part) for name, held in pieces.items() if len(held.size) >= 2 for _, part in held.parts]
