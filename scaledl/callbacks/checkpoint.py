"""When to save: every so many steps, at a new best, at the end; and which checkpoints stay."""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from scaledl import atomic
from scaledl.callbacks.throughput import Throughput
from scaledl.checkpoint import all_of, best_of, folder_of, remove, step_of


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
        self._due, self._prepared = False, False
        self._saved: tuple[int, dict[str, Any] | None] = (-1, None)  # step, and the best then

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Count micro-batches as this run makes them: it may accumulate more or fewer than the one that saved."""
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        micro_batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]):
            unfinished = counts["processed"] - counts["completed"]  # 1 if saved before Lightning counted the batch
            counts |= dict.fromkeys(("ready", "started", "processed"), micro_batches)
            counts["completed"] = micro_batches - unfinished

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.best = best_of(self.run_dir)
        self._saved = trainer.global_step, self.best

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if not self._prepared and (self.every_n_steps < trainer.max_steps or trainer.enable_validation):
            self._prepared = True  # now that the optimiser has its state; who saves at the end only needs no copies
            trainer.strategy.saver.prepare(trainer.strategy.state_tensors())  # type: ignore[attr-defined]
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # which makes Lightning validate the last step, whatever the interval
        self._due |= trainer.global_step % self.every_n_steps == 0
        if self._due and not validates_after(trainer, batch_idx):  # else save after it: the result belongs to the step
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        improved = self.judge(trainer.callback_metrics, trainer.global_step)
        if trainer.state.fn == "fit" and (improved or self._due):
            self.save(trainer)

    def judge(self, metrics: Mapping[str, Any], step: int) -> bool:
        """Whether a validation's metrics are the best so far, which is kept in mind.

        Raises:
            ValueError: the monitored one is not among them.
        """
        if self.monitor not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val/"))
            raise ValueError(f"monitor={self.monitor} is no metric of the validation; there are: {known}")
        value = float(metrics[self.monitor])
        sign = 1 if self.mode == "min" else -1
        improved = math.isfinite(value) and (self.best is None or sign * value < sign * self.best["value"])
        if improved:
            self.best = {"metric": self.monitor, "value": value, "step": step}
        return improved

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.save(trainer, wait=True)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._note(self.best)  # again, for a run that was killed between its last save and this note

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = state_dict["best"]
        if best is not None and folder_of(self.run_dir, best["step"]).exists():
            self.best = best

    def save(self, trainer: pl.Trainer, wait: bool = False) -> None:
        """Save this step in the background, once unless it has become the best since; then drop what need not stay.

        Args:
            wait: until all of this is done.

        Raises:
            OSError: this save, or without `wait` the one before it, failed.
        """
        self._due = False
        if self._saved != (trainer.global_step, self.best):
            trainer.save_checkpoint(
                folder_of(self.run_dir, trainer.global_step), storage_options=partial(self.tidy, self.best)
            )
            self._saved = trainer.global_step, self.best
        saver = trainer.strategy.saver  # type: ignore[attr-defined]
        if wait:
            saver.wait()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                callback.restart_clock()

    def tidy(self, best: dict[str, Any] | None) -> None:
        """Note which checkpoint is the best, and remove those that need not stay."""
        self._note(best)
        for checkpoint in all_of(self.run_dir)[: -self.keep_last]:
            if best is None or step_of(checkpoint) != best["step"]:
                remove(checkpoint)

    def _note(self, best: dict[str, Any] | None) -> None:
        if best is not None and folder_of(self.run_dir, best["step"]).exists():
            atomic.write_text(self.run_dir / "checkpoints" / "best.json", json.dumps(best))


def validates_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether an evaluation follows this micro-batch."""
    return trainer.enable_validation and (trainer.should_stop or (batch_idx + 1) % trainer.val_check_batch == 0)
