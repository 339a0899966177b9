"""A real run in a moment: points of the plane, a linear model, Lightning's own trainer."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from scaledl.data.points import Points
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.distributed.strategy import Single
from scaledl.tasks.base import Task


class Scripted(Task):
    """Least squares whose validation says what the test wants to hear: the next of `script` is `val/loss`."""

    script: list[float] = []

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        noisy = self.model(batch["x"]) + torch.randn(len(batch["y"]), 1)
        return {"loss": (noisy - batch["y"][:, None]).square().mean()}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {"loss": self.script.pop(0)} if self.script else means


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., pl.Trainer]:
    """Trains in tmp_path to `max_steps`, validating every `val_every` of them, and returns the trainer."""

    def run(
        *callbacks: pl.Callback,
        max_steps: int,
        val_every: int = 1000,
        script: Sequence[float] = (),
        accumulation: int = 1,
        task: Task | None = None,
        data: Any = None,
        resume: Path | None = None,
    ) -> pl.Trainer:
        if task is None:
            task = Scripted(ModelBuilder(partial(nn.Linear, 2, 1)), partial(torch.optim.AdamW, lr=0.1))
            task.script = list(script)
        for callback in callbacks:
            if hasattr(callback, "run_dir"):
                callback.run_dir = tmp_path
        data = data or Points("moons", 4 * accumulation, 4, num_samples=40)
        trainer = pl.Trainer(
            max_steps=max_steps,
            limit_val_batches=1.0 if data.split("val") is not None else 0,
            max_epochs=-1,
            val_check_interval=val_every * accumulation,
            check_val_every_n_epoch=None,
            accumulate_grad_batches=accumulation,
            accelerator="cpu",
            devices=1,
            strategy=Single(),
            callbacks=list(callbacks),
            logger=False,
            default_root_dir=tmp_path,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, datamodule=data, ckpt_path=resume and str(resume), weights_only=True)
        return trainer

    return run
