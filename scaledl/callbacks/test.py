"""The best checkpoint is measured on the test split, once, when training has ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl

from scaledl import checkpoint
from scaledl.callbacks.metrics import record
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
        with at_best(trainer, self.run_dir):
            measured = pl_module.evaluate("test", data.test_dataloader())
        record(trainer, measured)


@contextmanager
def at_best(trainer: pl.Trainer, run_dir: Path) -> Iterator[Path | None]:
    """With the best checkpoint's weights in the model, which stay there, or the last ones where none was best; averaged
    where an average is kept. All ranks enter it, when training has ended."""
    best = group.agreed(lambda: checkpoint.best(run_dir))
    if best is not None:
        trainer.strategy.load_average(best)  # type: ignore[attr-defined]
        yield best
        return
    with trainer.strategy.averaged():  # type: ignore[attr-defined]
        yield None
