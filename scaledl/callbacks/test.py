"""The best checkpoint is measured on the test split, once, when training has ended."""

from pathlib import Path

import lightning.pytorch as pl

from scaledl import checkpoint
from scaledl.callbacks.metrics import Metrics
from scaledl.distributed import group
from scaledl.tasks.base import Task


class BestOnTest(pl.Callback):
    """Runs inside the fit, where a sharded model is in place; another of Lightning's loops would set it up anew."""

    def __init__(self) -> None:
        self.run_dir = Path()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Task) -> None:  # type: ignore[override]
        data = trainer.datamodule  # type: ignore[attr-defined]
        if data.split("test") is None:
            return
        best = group.agreed(lambda: checkpoint.best(self.run_dir))
        if best is not None:
            trainer.strategy.load_average(best)  # type: ignore[attr-defined]
        measured = pl_module.evaluate("test", data.test_dataloader())
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Metrics):
                callback.record(trainer, measured)
