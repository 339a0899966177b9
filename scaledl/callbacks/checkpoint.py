"""When to save: every so many steps, at a new best, at the end; and which checkpoints stay."""

import json
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from scaledl import atomic
from scaledl.checkpoint import all_of, folder_of, step_of


class Checkpoint(pl.Callback):
    """Saves at optimiser-step boundaries.

    Args:
        every_n_steps: steps between two saves.
        keep_last: how many of the newest stay; the best one stays too.
        monitor: the validation metric that makes a checkpoint the best.
        mode: whether its smallest or its largest value is best.
    """

    def __init__(
        self, every_n_steps: int, keep_last: int = 2, monitor: str = "val/loss", mode: Literal["min", "max"] = "min"
    ):
        if every_n_steps < 1 or keep_last < 1:
            raise ValueError(f"checkpoint.every_n_steps={every_n_steps} and keep_last={keep_last} must be at least 1")
        self.every_n_steps, self.keep_last, self.monitor, self.mode = every_n_steps, keep_last, monitor, mode
        self.run_dir = Path()
        self.best: dict[str, Any] | None = None
        self._due, self._saved_step = False, -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._due |= trainer.global_step % self.every_n_steps == 0
        validates_next = (
            batch_idx + 1
        ) % trainer.val_check_batch == 0  # then save after it: the result belongs to this step
        if self._due and not validates_next:
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        improved = value is not None and (
            self.best is None or (value < self.best["value"] if self.mode == "min" else value > self.best["value"])
        )
        if improved:
            self.best = {"metric": self.monitor, "value": float(value), "step": trainer.global_step}
        if trainer.state.fn == "fit" and (improved or self._due):
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: pl.Trainer) -> None:
        """Save this step once, note the best, and drop what need not stay."""
        self._due = False
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(folder_of(self.run_dir, trainer.global_step))
            self._saved_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        if self.best is not None and folder_of(self.run_dir, self.best["step"]).exists():
            atomic.write_text(self.run_dir / "checkpoints" / "best.json", json.dumps(self.best))
        keep = {self.best["step"]} if self.best else set()
        for checkpoint in all_of(self.run_dir)[: -self.keep_last]:
            if step_of(checkpoint) not in keep:
                trainer.strategy.checkpoint_io.remove_checkpoint(checkpoint)
