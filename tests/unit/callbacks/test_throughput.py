"""What counts as time of training, by a clock that the test moves."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.callbacks import throughput
from scaledl.callbacks.throughput import Throughput
from scaledl.data.points import Points
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task

Fit = Callable[..., pl.Trainer]


class Clock(pl.Callback):
    """A micro-batch takes 1 s, or 10 s among the first `slow` of them; a validation batch takes 1000 s."""

    def __init__(self, slow: int = 0):
        self.now, self.slow = 100.0, slow

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.now += 10.0 if batch_idx < self.slow else 1.0

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self.now += 1000.0


@pytest.fixture
def run(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Throughput]:
    def measure(clock: Clock, measured: Throughput, **arguments: Any) -> Throughput:
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: clock.now))
        fit(clock, measured, **arguments)
        return measured

    return measure


def test_validation_is_no_time_of_training(run: Callable[..., Throughput]) -> None:
    measured = run(Clock(), Throughput(skip_steps=0), max_steps=8, val_every=2)
    assert measured.train_seconds == 8
    assert measured.rates == {"samples_per_second": 4.0}


def test_the_first_steps_are_time_but_not_speed(run: Callable[..., Throughput]) -> None:
    measured = run(Clock(slow=3), Throughput(skip_steps=3), max_steps=8)
    assert measured.train_seconds == 3 * 10 + 5
    assert measured.rates == {"samples_per_second": 4.0}


def test_a_step_counts_all_of_its_micro_batches(run: Callable[..., Throughput]) -> None:
    measured = run(Clock(), Throughput(skip_steps=2), max_steps=6, accumulation=4)
    assert measured.train_seconds == 24
    assert measured.rates == {"samples_per_second": 4.0}  # 16 samples in 4 s


def test_there_is_no_speed_before_a_step_was_measured(run: Callable[..., Throughput]) -> None:
    assert run(Clock(), Throughput(skip_steps=5), max_steps=5).rates == {}


class LeastSquares(Task):
    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.model(batch["x"])[:, 0] - batch["y"]).square().mean()}


def test_utilization_is_of_the_peak_that_is_given(run: Callable[..., Throughput]) -> None:
    task = LeastSquares(ModelBuilder(partial(nn.Linear, 2, 1)), partial(torch.optim.AdamW, lr=0.1))
    measured = run(Clock(), Throughput(skip_steps=0, peak_tflops=1e-6), max_steps=4, task=task)
    assert measured.flops_per_sample == 2 * 2 * 2  # forward, and backward to the weights
    expected = measured.flops_per_sample * measured.rates["samples_per_second"] / 1e6
    assert measured.mfu == pytest.approx(expected)


def test_the_sample_that_is_counted_is_of_mean_length(
    run: Callable[..., Throughput], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, counted = Points("moons", 4, 4, num_samples=40), []
    train = data.split("train")
    train.lengths = lambda indices: np.where(indices == 7, 5, np.where(indices % 2, 1, 9))
    monkeypatch.setattr(throughput, "flops_of_sample", lambda task, batch: counted.append(batch) or 1)
    run(Clock(), Throughput(peak_tflops=1.0), max_steps=1, data=data)
    assert counted[0]["x"].equal(train.__getitems__(np.array([7]))["x"])


def test_an_unknown_peak_gives_no_utilization(run: Callable[..., Throughput]) -> None:
    measured = run(Clock(), Throughput(skip_steps=0), max_steps=2)
    assert measured.mfu is None
    assert measured.flops_per_sample is None
