"""What every objective has in common: a model built late, one optimiser, metrics without a host sync."""

from collections.abc import Callable
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.lora import is_adapted
from scaledl.optim.groups import groups_of


class Task(pl.LightningModule):
    """An objective over a model. A subclass writes `objective` and, where a batch does not count its samples, `weight`.

    Args:
        model: builds the model, once the strategy has said where.
        optimizer: makes the optimiser from parameter groups.
        scheduler: makes the learning-rate schedule from the optimiser, stepped every optimiser step.
    """

    needs: tuple[
        Literal["average", "second_order_gradients", "several_optimizers", "whole_batch"], ...
    ] = ()  # which not every run can do

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
    ):
        super().__init__()
        self.model_builder, self.make_optimizer, self._make_scheduler = model, optimizer, scheduler
        self.model: nn.Module = None  # type: ignore[assignment]
        self.noise: Noise = None  # type: ignore[assignment]  # of the batch at hand
        self.step_metrics: dict[str, Tensor] = {}
        self.step_counts: Tensor | None = None  # of the model (see CONTRIBUTING.md), over micro-batches and ranks
        self._weight_share = 1.0
        self._eval_sums: dict[str, Tensor] = {}
        self.eval_dataset: Any = None  # of the evaluation that is running or has ended last

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metrics of a batch, each a mean over it, on device; `loss` is the one to minimise."""
        raise NotImplementedError(f"{type(self).__name__} must return its losses and metrics")

    def weight(self, batch: dict[str, Tensor]) -> int | Tensor:
        """Over how many things (samples, tokens) the means of a batch go; the training set's `weights` say the same."""
        return len(next(iter(batch.values())))

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """The metrics of a whole evaluation from its means; a place for what is no mean, such as perplexity."""
        return means

    def carried(self) -> dict[str, list[tuple[int, Tensor]]]:
        """What goes from one training batch into the next besides weights, and so into checkpoints, by name.

        Tensors (depth, n, dim) over samples of the global batch, each with the number of its first sample there.
        """
        return {}

    # -- nothing from here on is for a subclass to write -----------------------------------------------------------

    def configure_model(self) -> None:
        if self.model is None:
            self.model = self.built()

    def built(self) -> nn.Module:
        """A model as the strategy wants it."""
        strategy = self.trainer.strategy if self._trainer is not None else None
        split, shard = getattr(strategy, "split", None), getattr(strategy, "shard", None)
        return self.model_builder(split=split, shard=shard)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(groups_of(self.make_optimizer, self.model))
        if optimizer.defaults.get("fused", False) is None and not optimizer.defaults.get("foreach"):
            sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())
            if not sharded or isinstance(optimizer, Adam):  # the only one whose fused kernel knows DTensors
                optimizer = self.make_optimizer(groups_of(self.make_optimizer, self.model), fused=True)
        if self._make_scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_scheduler(optimizer), "interval": "step"},
        }

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Draw dropout from (seed, micro-batch, rank), so that a resumed run needs no saved generator state.

        All other randomness is `self.noise`, which is the same on any number of ranks.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        self.noise = Noise(self.model_builder.seed, data.positions(batch_idx).to(self.device))
        self._weight_share = data.weight_share(batch_idx)
        seed = ((self.model_builder.seed * 1_000_003 + batch_idx) * 65_537 + data.rank) % 2**63
        # Not torch.manual_seed: where CUDA is not in use it keeps every call for later, with a stack trace, for 1 ms.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        metrics = self.objective(batch)
        if auxiliary := getattr(self.model, "auxiliary_losses", dict)():
            metrics = metrics | auxiliary | {"loss": metrics["loss"] + sum(auxiliary.values())}
        if self._weight_share != 1:
            metrics = {name: value * self._weight_share for name, value in metrics.items()}
        accumulation = self.trainer.accumulate_grad_batches
        first = batch_idx % accumulation == 0
        for name, value in metrics.items():
            share = value.detach() / accumulation if accumulation > 1 else value.detach()
            self.step_metrics[name] = share if first else self.step_metrics[name] + share
        counts = self.model.step_counts() if hasattr(self.model, "step_counts") else None
        self.step_counts = counts if first or counts is None else self.step_counts + counts
        return metrics["loss"]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.trainer.strategy.finish_gradients(optimizer, gradient_clip_val)  # type: ignore[attr-defined]

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, *arguments, **named)
        strategy = self.trainer.strategy
        if not strategy.handles_gradient_accumulation:  # DeepSpeed, which frees its own
            optimizer.zero_grad()  # Lightning would keep them in memory until the next forward pass has ended
        norm, skipped = strategy.step_report()  # type: ignore[attr-defined]
        self.step_metrics |= {"grad_norm": norm, "skipped": skipped.float()}
        # DeepSpeed, which accumulates by itself, is asked for a step at every micro-batch.
        if self.step_counts is not None and (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0:
            self.step_counts = strategy.reduce(self.step_counts, reduce_op="sum")  # type: ignore[assignment]
            if not is_adapted(self.model):  # which is frozen but for its adapters
                self.model.after_step(self.step_counts, ~skipped)  # type: ignore[operator]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._add_to_evaluation(batch, batch_idx, self.trainer.val_dataloaders)

    def on_validation_epoch_end(self) -> None:
        self._finish_evaluation("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._add_to_evaluation(batch, batch_idx, self.trainer.test_dataloaders)

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test")

    @torch.no_grad()
    def evaluate(self, split: str, loader: Any) -> dict[str, float]:
        """Metrics over a loader, by all ranks together, outside Lightning's loops."""
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        was_training = self.training
        self.eval()
        for batch_idx, batch in enumerate(loader):
            on_device = strategy.batch_to_device(precision.convert_input(batch))
            with precision.val_step_context():
                self._add_to_evaluation(on_device, batch_idx, loader)
        self.train(was_training)
        return self._means(split)

    def _add_to_evaluation(self, batch: dict[str, Tensor], batch_idx: int, loader: Any) -> None:
        batches, self.eval_dataset = loader.batch_sampler, loader.dataset
        self.noise = Noise(self.model_builder.seed, batches.positions(batch_idx).to(self.device))
        weight = torch.as_tensor(self.weight(batch), device=self.device, dtype=torch.float64)
        if batches.repeats(batch_idx):  # sharded models compute together, so a rank without a batch computes one again
            weight = torch.zeros_like(weight)
        metrics = {**self.objective(batch), "": torch.ones_like(weight)}
        parts, part = self._eval_parts(), batches.part(batch_idx)
        for number, (prefix, _) in enumerate(parts):  # on every rank all names, whatever batches it had
            for name, value in metrics.items():
                value = value.detach().double()
                share = value * weight if number == part else torch.zeros_like(value)  # NaN times 0 would be NaN
                self._eval_sums[prefix + name] = self._eval_sums.get(prefix + name, 0) + share

    def _eval_parts(self) -> list[tuple[str, float]]:
        """(what its metrics begin with, weight) of each part of the data that is evaluated by itself."""
        parts = getattr(self.eval_dataset, "parts", None)
        return [(f"{name}/", weight) for name, _, weight in parts] if parts else [("", 1.0)]

    def _finish_evaluation(self, split: str) -> None:
        for name, value in self._means(split).items():
            self.log(name, value, logger=False)  # callbacks/metrics.py logs it

    def _means(self, split: str) -> dict[str, float]:
        names, sums = list(self._eval_sums), torch.stack(list(self._eval_sums.values()))
        self._eval_sums = {}
        totals = dict(zip(names, self.trainer.strategy.reduce(sums, reduce_op="sum").tolist(), strict=True))
        found: dict[str, float] = {}
        means: dict[str, float] = {}
        for prefix, weight in (parts := self._eval_parts()):
            count = totals.pop(prefix)
            for name in [name for name in totals if name.startswith(prefix)]:
                mean = totals.pop(name) / count
                means[name.removeprefix(prefix)] = means.get(name.removeprefix(prefix), 0.0) + weight * mean
                if len(parts) > 1:
                    found[name] = mean
        return {f"{split}/{name}": value for name, value in {**self.summarize(means), **found}.items()}


def check_range(task: Task, within: tuple[float, float], who: str, instead: str) -> None:
    """Whether the data's values are where a task takes them to be; at the start of the training.

    Raises:
        ValueError: they are not.
    """
    train = task.trainer.datamodule.split("train")  # type: ignore[attr-defined]
    low, high = torch.aminmax(train.__getitems__(np.arange(min(256, len(train))))["x"].float())
    if low < within[0] - 1e-3 or high > within[1] + 1e-3:
        raise ValueError(
            f"the data's values lie in [{low:.2f}, {high:.2f}], but {who} [{within[0]:g}, {within[1]:g}]: take "
            f"{instead}, or images that are not standardised (data.mean=[0] data.std=[1], a number for each channel)"
        )
