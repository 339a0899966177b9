"""Ends a run that hangs, with a report of the ranks it waits for."""

from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist

from scaledl.distributed.watchdog import Watchdog, connect


class HangWatchdog(pl.Callback):
    """Watches runs of more than one rank.

    Args:
        timeout_seconds: the longest that one step, one batch of an evaluation or one checkpoint may take. The
            collectives' own timeout must be longer, or it ends the run first and names no rank.
    """

    def __init__(self, timeout_seconds: float = 600):
        if timeout_seconds < 1:
            raise ValueError(f"callbacks.watchdog.timeout_seconds={timeout_seconds} must be at least 1")
        self.timeout_seconds = timeout_seconds
        self._watchdog: Watchdog | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self._watchdog = Watchdog(connect(), dist.get_rank(), dist.get_world_size(), self.timeout_seconds)
            self._watchdog.start()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._tick(trainer, "forward")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Any) -> None:
        self._tick(trainer, "backward")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._tick(trainer, "optimizer")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._tick(trainer, "next batch")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._tick(trainer, f"validation batch {batch_idx}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tick(trainer, "end of the validation")

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._tick(trainer, "checkpoint")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tick(trainer, "end of the training")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop(type(exception).__name__)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop("finished")

    def _tick(self, trainer: pl.Trainer, what: str) -> None:
        if self._watchdog is not None:
            self._watchdog.tick(f"step {trainer.global_step}: {what}")

    def _stop(self, why: str) -> None:
        if self._watchdog is not None:
            self._watchdog.stop(why)
            self._watchdog = None
