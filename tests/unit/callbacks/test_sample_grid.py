import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from scaledl import judge
from scaledl.callbacks.ema import EMA
from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.sample_grid import SampleGrid
from scaledl.data.digits import Digits
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task
from tests.unit.callbacks.test_pictures import assert_is_a_picture

Fit = Callable[..., pl.Trainer]


class Memory(Task):
    """Draws training images of the class that it is asked for, chosen by noise; learns something else."""

    conditional = True

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.model(batch["x"].flatten(1)).square().mean()}

    def samples(self, noise: Noise, labels: Tensor) -> Tensor:
        with torch.enable_grad():  # which a task with Langevin steps does
            assert (torch.ones(1, requires_grad=True) * 2).requires_grad
        assert not self.training
        self.weights = self.model.weight.detach().clone()
        train = self.trainer.datamodule.split("train")
        likely = noise.uniform("which", len(train)) * (train.y == labels[:, None])
        return train.x[likely.argmax(1)]


def memory() -> Memory:
    return Memory(ModelBuilder(partial(nn.Linear, 64, 1)), partial(torch.optim.AdamW, lr=0.1))


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "MAX_STEPS", 100)
    monkeypatch.setenv("SCALEDL_CACHE", str(tmp_path))


def test_samples_are_drawn_and_judged(fit: Fit, tmp_path: Path) -> None:
    task, metrics = memory(), Metrics()
    trainer = fit(metrics, SampleGrid(200, 3), max_steps=4, val_every=2, task=task, data=Digits(64, 64))
    for step in (2, 4):
        assert_is_a_picture(tmp_path / "samples" / f"step_{step:08d}.png")
    said = json.loads((tmp_path / "samples" / "step_00000004.json").read_text())
    assert said == {n.removeprefix("val/"): pytest.approx(v) for n, v in metrics.last.items() if n in said_of(said)}
    assert said["conditional_acc"] > 0.9
    assert said["coverage"] == 1
    assert said["precision"] > 0.9
    assert "test/frechet" in metrics.last
    assert trainer.lightning_module.training


def said_of(said: dict[str, float]) -> set[str]:
    return {f"val/{name}" for name in said}


def test_averaged_weights_draw(fit: Fit, tmp_path: Path) -> None:
    task = memory()
    trainer = fit(EMA(0.9), SampleGrid(judged=False), max_steps=3, val_every=3, task=task, data=Digits(64, 64))
    torch.testing.assert_close(task.weights, trainer.strategy.average[0])
    assert not torch.equal(task.weights, task.model.weight)
    assert not list((tmp_path / "samples").glob("*.json"))


def test_samples_do_not_depend_on_the_batches_they_are_drawn_in(fit: Fit) -> None:
    drawn = []
    for batch_size in (7, 64):
        task, grid = memory(), SampleGrid(50, batch_size=batch_size)
        trainer = fit(grid, max_steps=1, task=task, data=Digits(64, 64))
        drawn.append(grid._draw(trainer, task, grid._labels, 5))
    assert torch.equal(*drawn)


def test_a_task_that_draws_nothing_is_refused(fit: Fit) -> None:
    with pytest.raises(ValueError, match=r"Scripted has no samples\(\)"):
        fit(SampleGrid(), max_steps=1)


def test_samples_that_are_not_finite_are_refused(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "samples", lambda self, noise, labels: torch.full((len(labels), 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="Memory draws samples that are not finite"):
        fit(SampleGrid(50), max_steps=1, val_every=1, task=memory(), data=Digits(64, 64))
