"""What every objective has in common: a model built late, one optimiser, metrics without a host sync."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.optim.groups import decay_groups


class Task(pl.LightningModule):
    """An objective over a model. A subclass writes `objective` and, where a batch does not count its samples, `weight`.

    Args:
        model: builds the model, once the strategy has said where.
        optimizer: makes the optimiser from parameter groups.
        scheduler: makes the learning-rate schedule from the optimiser, stepped every optimiser step.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
    ):
        super().__init__()
        self.model_builder, self._make_optimizer, self._make_scheduler = model, optimizer, scheduler
        self.model: nn.Module = None  # type: ignore[assignment]
        self.step_metrics: dict[str, Tensor] = {}
        self._eval_sums: dict[str, Tensor] = {}

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics of a batch, each a mean over it, on device; `loss` is the one to minimise."""
        raise NotImplementedError(f"{type(self).__name__} must return its losses and metrics")

    def weight(self, batch: dict[str, Tensor]) -> int | Tensor:
        """Over how many things (samples, tokens) the means of a batch go."""
        return len(next(iter(batch.values())))

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """The metrics of a whole evaluation from its means; a place for what is no mean, such as perplexity."""
        return means

    # -- nothing from here on is for a subclass to write -----------------------------------------------------------

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.model_builder()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self._make_optimizer(decay_groups(self.model))
        if optimizer.defaults.get("fused", False) is None and not optimizer.defaults.get("foreach"):
            optimizer = self._make_optimizer(decay_groups(self.model), fused=True)
        if self._make_scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_scheduler(optimizer), "interval": "step"},
        }

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Draw all noise from (seed, micro-batch, rank), so that a resumed run needs no saved generator state."""
        seed = ((self.model_builder.seed * 1_000_003 + batch_idx) * 65_537 + self.global_rank) % 2**63
        # Not torch.manual_seed: where CUDA is not in use it keeps every call for later, with a stack trace, for 1 ms.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        metrics = self.objective(batch)
        accumulation = self.trainer.accumulate_grad_batches
        first = batch_idx % accumulation == 0
        for name, value in metrics.items():
            share = value.detach() / accumulation if accumulation > 1 else value.detach()
            self.step_metrics[name] = share if first else self.step_metrics[name] + share
        return metrics["loss"]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if gradient_clip_val:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val, foreach=True)
            self.step_metrics["grad_norm"] = norm

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._add_to_evaluation(batch)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._add_to_evaluation(batch)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    def _add_to_evaluation(self, batch: dict[str, Tensor]) -> None:
        weight = torch.as_tensor(self.weight(batch), device=self.device, dtype=torch.float64)
        metrics = {**self.objective(batch), "": torch.ones_like(weight)}
        for name, value in metrics.items():
            self._eval_sums[name] = self._eval_sums.get(name, 0) + value.detach().double() * weight

    def _finish_evaluation(self, split: str) -> None:
        names, sums = list(self._eval_sums), torch.stack(list(self._eval_sums.values()))
        self._eval_sums = {}
        totals = dict(zip(names, self.trainer.strategy.reduce(sums, reduce_op="sum").tolist(), strict=True))
        count = totals.pop("")
        for name, value in self.summarize({name: total / count for name, total in totals.items()}).items():
            self.log(f"{split}/{name}", value, logger=False)  # callbacks/metrics.py logs it
