"""The clock as a callback of `scaledl train`."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from clock import Clock


class ScaleDLClock(pl.Callback):
    """Measures what `job` (a file) says and writes it to `out`."""

    def __init__(self, job: str, out: str):
        self.clock, self.out = Clock(json.loads(Path(job).read_text())), Path(out)
        self.losses: list[Any] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(pl_module.step_metrics["loss"])  # stays on the device

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.write(self.out, self.losses)
