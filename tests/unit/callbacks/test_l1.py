"""A proximal step makes weights exactly zero (tests/distributed/test_l1.py: under every strategy the same ones)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.callbacks.l1 import L1
from scaledl.callbacks.metrics import Metrics
from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.distributed.strategy import Single
from scaledl.optim.schedule import linear
from scaledl.tasks.base import Task

N, WIDTH = 24, 6


class LeastSquares(Task):
    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.model(batch["x"])[:, 0] - batch["y"]).square().mean() / 2}


class Orthogonal(Data):
    """Inputs with X'X = N: the least-squares solution is X'y / N, each weight by itself."""

    def datasets(self) -> dict[str, BatchDataset]:
        samples = Samples(X, Y)
        return {"train": samples, "val": samples}


def _orthogonal() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = np.linalg.qr(draw.standard_normal((N, WIDTH)))[0] * N**0.5
    y = x @ [2.0, -1.0, 0.5, -0.25, 0.1, 0.0] + 0.1 * draw.standard_normal(N)
    return x.astype(np.float32), y.astype(np.float32)


X, Y = _orthogonal()


def fit(
    model: Callable[[], nn.Module],
    *callbacks: pl.Callback,
    optimizer: Any,
    steps: int,
    scheduler: Any = None,
    accumulation: int = 1,
    val_every: int = 1000,
) -> LeastSquares:
    task = LeastSquares(ModelBuilder(model), optimizer, scheduler)
    pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=val_every * accumulation,
        check_val_every_n_epoch=None,
        accumulate_grad_batches=accumulation,
        accelerator="cpu",
        devices=1,
        strategy=Single(),
        callbacks=list(callbacks),
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(task, datamodule=Orthogonal(N, N // accumulation))
    return task


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradient_descent_reaches_the_lasso_whose_solution_is_known(accumulation: int) -> None:
    """With X'X = N: the least-squares weights, each nearer to zero by the strength, or zero (Tibshirani 1996)."""
    strength, metrics = 0.3, Metrics()
    task = fit(
        partial(nn.Linear, WIDTH, 1, bias=False),
        metrics,
        L1(strength),
        optimizer=partial(torch.optim.SGD, lr=0.5),
        steps=60,
        accumulation=accumulation,
        val_every=60,
    )
    least_squares = torch.from_numpy(X.T @ Y / N)
    expected = least_squares.sign() * (least_squares.abs() - strength).clamp(min=0)
    found = task.model.weight.detach()[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    zeros = (found == 0).float().mean().item()
    assert torch.equal(found == 0, expected == 0)
    assert 0.3 < zeros < 0.7
    assert metrics.last["val/zeros"] == pytest.approx(zeros)


def test_only_matrices_shrink_and_by_the_learning_rate_of_the_step() -> None:
    """With a gradient of zero a step changes nothing but what the penalty takes off: the sum of lr times strength."""

    class Still(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 0.0 * super().forward(x)

    model = partial(Still, WIDTH, 1)
    begin = ModelBuilder(model)()
    schedule = partial(linear, warmup_steps=0, max_steps=4)
    lrs = [0.1 * (1 - step / 4) for step in range(3)]
    task = fit(model, L1(0.5), optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=schedule, steps=3)
    shrunk = begin.weight.abs() - 0.5 * sum(lrs)
    torch.testing.assert_close(task.model.weight, begin.weight.sign() * shrunk.clamp(min=0))
    assert torch.equal(task.model.bias, begin.bias)


class Spoil(pl.Callback):
    """Makes the gradient of one step not a number."""

    def __init__(self, step: int):
        self.step = step

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            for parameter in pl_module.parameters():
                parameter.grad.fill_(torch.nan)


class Watch(pl.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(pl_module.model.weight.detach().clone())


def test_a_step_that_is_left_out_shrinks_nothing() -> None:
    watch = Watch()
    fit(
        partial(nn.Linear, WIDTH, 1),
        Spoil(1),
        L1(0.5),
        watch,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        steps=3,
    )
    assert torch.equal(watch.seen[0], watch.seen[1])
    assert not torch.equal(watch.seen[1], watch.seen[2])


def test_a_strength_that_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"callbacks.l1.strength=0.0 must be above 0; ~callbacks.l1"):
        L1(0.0)
