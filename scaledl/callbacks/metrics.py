"""What was measured at a step goes to every logger; values leave the device only at the steps that are logged."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer

from scaledl.callbacks.throughput import Throughput
from scaledl.tasks.base import Task


class Metrics(pl.Callback):
    """Logs `train/*`, `lr`, `samples_seen`, `tokens_seen` and `perf/*` every `log_every_n_steps`; `val/*` when known.

    A logged step costs one read of the device, for all values together; the steps between cost none.

    Args:
        baselines: first find what simple methods reach on this data, and log it as `baseline/*`.
    """

    def __init__(self, baselines: bool = False) -> None:
        self.baselines = baselines
        self.last: dict[str, float] = {}
        self._lr = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        if self.baselines and trainer.is_global_zero and trainer.global_step == 0:  # a resumed run has them
            found = trainer.datamodule.baselines()  # type: ignore[attr-defined]
            self.record(trainer, {f"baseline/{name}": value for name, value in found.items()})

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        self._lr = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Task, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # type: ignore[override]
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (batch_idx + 1) % trainer.accumulate_grad_batches or (step % every and step != 1):
            return
        names, values = list(pl_module.step_metrics), torch.stack([v.float() for v in pl_module.step_metrics.values()])
        values = trainer.strategy.reduce(values, reduce_op="mean").tolist()
        train = {f"train/{name}": value for name, value in zip(names, values, strict=True)}
        train["lr"] = self._lr
        data = trainer.datamodule  # type: ignore[attr-defined]
        train["samples_seen"] = data.samples_seen
        if data.tokens_per_sample:
            train["tokens_seen"] = data.samples_seen * data.tokens_per_sample
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                train |= {f"perf/{name}": value for name, value in callback.rates.items()}
                train["perf/train_seconds"] = callback.train_seconds
                if callback.mfu is not None:
                    train["perf/mfu"] = callback.mfu
        self.record(trainer, train)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        self.record(trainer, {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("val/")})

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last = state_dict["last"]

    def record(self, trainer: pl.Trainer, values: dict[str, float]) -> None:
        self.last |= values
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def record(trainer: pl.Trainer, values: dict[str, float]) -> None:
    """Log what a callback has measured itself, and keep it for the summary."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Metrics):
            callback.record(trainer, values)
