"""Samples and tokens a second of training alone: evaluation, saving and the first steps are left out."""

import time
from typing import Any

import lightning.pytorch as pl


class Throughput(pl.Callback):
    """Counts from the end of step `skip_steps` on, because the first steps pay for allocation and compilation."""

    def __init__(self, skip_steps: int = 5):
        self.skip_steps = skip_steps
        self.train_seconds = 0.0
        self._steps, self._measured_steps, self._measured_seconds = 0, 0, 0.0
        self._since = 0.0
        self._per_step = {"samples": 0, "tokens": 0}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        tokens = getattr(data, "tokens_per_sample", 0)
        self._per_step = {"samples": data.global_batch_size, "tokens": data.global_batch_size * tokens}
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        self.train_seconds += now - self._since
        self._steps += 1
        if self._steps > self.skip_steps:
            self._measured_steps += 1
            self._measured_seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave out what happened since the last step."""
        self._since = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]

    @property
    def rates(self) -> dict[str, float]:
        """`samples_per_second` and, where samples are made of tokens, `tokens_per_second`, over all ranks."""
        if not self._measured_seconds:
            return {}
        steps_per_second = self._measured_steps / self._measured_seconds
        return {f"{unit}_per_second": count * steps_per_second for unit, count in self._per_step.items() if count}
