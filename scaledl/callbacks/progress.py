"""Where the run stands: a bar on a terminal, else a plain line every few seconds."""

import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.throughput import Throughput


class Progress(pl.Callback):
    """Loss, speed and time left, as of the last logged step.

    Args:
        refresh_seconds: least time between two drawings on a terminal.
        line_seconds: least time between two lines elsewhere.
    """

    def __init__(self, refresh_seconds: float = 0.2, line_seconds: float = 10.0):
        self.refresh_seconds, self.line_seconds = refresh_seconds, line_seconds
        self._console = Console()
        self._bar: Bar | None = None
        self._drawn = self._started = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._drawn = time.monotonic()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and self._console.is_terminal:
            self._bar = Bar(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                auto_refresh=False,
            )
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        wait = self.refresh_seconds if self._bar else self.line_seconds
        if time.monotonic() - self._drawn >= wait:
            self._draw(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        values = {n: v.item() for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        printer = self._bar.console if self._bar else self._console
        printer.print(f"step {trainer.global_step}  {shown}", highlight=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._draw(trainer)
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _draw(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        self._drawn = now = time.monotonic()
        done = trainer.global_step - self._first_step
        left = (now - self._started) / max(done, 1) * (trainer.max_steps - trainer.global_step)
        parts = [f"{left // 60:.0f}:{left % 60:02.0f} left"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Throughput):
                parts = [f"{value:,.0f} {name.replace('_per_second', '/s')}" for name, value in callback.rates.items()][
                    -1:
                ] + parts
                if callback.mfu is not None:
                    parts.insert(0, f"{callback.mfu:.1%} MFU")
            if isinstance(callback, Metrics) and "train/loss" in callback.last:
                parts.append(f"train/loss {callback.last['train/loss']:.4f}")
        parts.reverse()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, description="  ".join(parts))
            self._bar.refresh()
        else:
            self._console.print(f"step {trainer.global_step}/{trainer.max_steps}  " + "  ".join(parts), highlight=False)

    def _stop(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
