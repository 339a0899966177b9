"""The test split is measured once, at the end, with the weights that were best."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from scaledl import checkpoint
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.test import BestOnTest
from scaledl.data.base import BatchDataset, Data
from scaledl.data.points import Points
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.tasks.classification import Classification

Fit = Callable[..., pl.Trainer]


class Scripted(Classification):
    """Its validation says the next of `script`; all else is measured."""

    def __init__(self, script: list[float]) -> None:
        super().__init__(ModelBuilder(partial(MLP, 2, [8], 2)), partial(torch.optim.AdamW, lr=0.1), 2)
        self.script, self.training_when_measured = script, []

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.training_when_measured.append(self.training)
        return super().objective(batch)

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": self.script.pop(0)} if self.script else means


class Logger(pl.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.lines.append((step, metrics))


def data() -> Points:
    return Points("moons", 8, 8, num_samples=190)  # whose test split no micro-batch divides


def measured(weights: dict[str, Tensor]) -> dict[str, float]:
    """On the whole test split in one batch."""
    task = Scripted([])
    task.configure_model()
    task.load_state_dict(weights)
    test = data().split("test")
    everything = test.__getitems__(np.arange(len(test)))
    return {f"test/{name}": value.item() for name, value in task.eval().objective(everything).items()}


def test_the_best_checkpoint_is_measured_and_not_the_last(fit: Fit, tmp_path: Path) -> None:
    metrics, task = Metrics(), Scripted([2.0, 1.0, 3.0])
    saving = Checkpoint(every_n_steps=1000)
    fit(metrics, saving, BestOnTest(), max_steps=6, val_every=2, task=task, data=data())
    best, last = (checkpoint.load_model_weights(checkpoint.folder_of(tmp_path, step)) for step in (4, 6))
    found = {name: value for name, value in metrics.last.items() if name.startswith("test/")}
    assert found == pytest.approx(measured(best), rel=1e-5)
    assert found["test/loss"] != pytest.approx(measured(last)["test/loss"], rel=1e-3)
    assert saving.best == {"metric": "val/loss", "value": 1.0, "step": 4}
    assert task.training_when_measured[-1] is False


def test_without_a_checkpoint_the_weights_at_the_end_are_measured(fit: Fit) -> None:
    metrics, task = Metrics(), Scripted([])
    fit(metrics, BestOnTest(), max_steps=3, task=task, data=data())
    found = {name: value for name, value in metrics.last.items() if name.startswith("test/")}
    assert found == pytest.approx(measured(task.state_dict()), rel=1e-5)


def test_a_best_checkpoint_that_is_damaged_is_said_and_left_alone(fit: Fit, tmp_path: Path) -> None:
    class Damage(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            (checkpoint.folder_of(tmp_path, 2) / "rank_00000.safetensors").write_bytes(b"")

    metrics, task = Metrics(), Scripted([1.0, 2.0])
    with pytest.warns(UserWarning, match="the best checkpoint, .*step_00000002, is damaged"):
        fit(metrics, Checkpoint(1000), Damage(), BestOnTest(), max_steps=4, val_every=2, task=task, data=data())
    found = {name: value for name, value in metrics.last.items() if name.startswith("test/")}
    assert found == pytest.approx(measured(task.state_dict()), rel=1e-5)


def test_data_without_a_test_split_is_not_measured(fit: Fit) -> None:
    class Untested(Points):
        def datasets(self) -> dict[str, BatchDataset]:
            return {name: split for name, split in super().datasets().items() if name != "test"}

    untested: Data = Untested("moons", 8, 8, num_samples=190)
    metrics = Metrics()
    fit(metrics, Checkpoint(1000), BestOnTest(), max_steps=4, val_every=2, task=Scripted([]), data=untested)
    assert metrics.last
    assert not any(name.startswith("test/") for name in metrics.last)


def test_it_is_logged_at_the_last_step(fit: Fit) -> None:
    logger = Logger()

    class Log(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            trainer.loggers = [logger]

    fit(Log(), Metrics(), BestOnTest(), max_steps=3, task=Scripted([]), data=data())
    assert [(step, sorted(values)) for step, values in logger.lines if any("test" in name for name in values)] == [
        (3, ["test/acc", "test/loss"])
    ]
