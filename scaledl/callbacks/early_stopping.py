"""Training ends when validation no longer improves (Prechelt 1998)."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl

from scaledl.callbacks.metrics import Metrics


class EarlyStopping(pl.Callback):
    """Ends the run, completed, after `patience` validations in a row without an improvement.

    All ranks decide alike, because what is monitored is a mean over all of them. Checkpoints hold the count, so that a
    run that has ended this way ends at once when it is resumed, unless with more patience or without this callback. It
    is logged as `early_stopping/waited`.

    Args:
        patience: validations, at least 1.
        monitor: the metric of the validation that should improve.
        mode: whether smaller or larger values of it are better.
        min_delta: by how much a value must be better than the best one before.

    Raises:
        ValueError: patience or min_delta is out of range, or the validation has no such metric.
    """

    def __init__(
        self, patience: int, monitor: str = "val/loss", mode: Literal["min", "max"] = "min", min_delta: float = 0.0
    ):
        if patience < 1 or min_delta < 0:
            raise ValueError(
                f"callbacks.early_stopping.patience={patience} must be at least 1, and min_delta={min_delta} at least 0"
            )
        self.patience, self.monitor, self.min_delta = patience, monitor, min_delta
        self.sign = 1 if mode == "min" else -1
        self.best, self.best_step, self.waited = math.inf, 0, 0  # best: of sign * value

    @property
    def reason(self) -> str | None:
        """Why the run has ended, if this has ended it."""
        if self.waited < self.patience:
            return None
        times = "1 validation" if self.waited == 1 else f"{self.waited} validations"
        best = f"{self.sign * self.best:.4g} at step {self.best_step}"
        return f"{self.monitor} has not improved in {times}: its best is {best}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_if_due(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        self.judge(trainer.callback_metrics, trainer.global_step)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Metrics):
                callback.record(trainer, {"early_stopping/waited": float(self.waited)})
        self._stop_if_due(trainer)

    def judge(self, metrics: Mapping[str, Any], step: int) -> None:
        """Count a validation.

        Raises:
            ValueError: it has no such metric.
        """
        if self.monitor not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val/"))
            raise ValueError(
                f"callbacks.early_stopping.monitor={self.monitor} is no metric of the validation; there are: {known}"
            )
        value = self.sign * float(metrics[self.monitor])
        if value < self.best - self.min_delta:  # which NaN is not
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        if self.reason:
            trainer.should_stop = True
            if trainer.is_global_zero:
                warnings.warn(f"step {trainer.global_step}: training ends, for {self.reason}", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step, self.waited = (state_dict[name] for name in ("best", "best_step", "waited"))
