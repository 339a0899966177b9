import math
import random
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from scaledl.callbacks.lr_range import LrRange, smoothed, suggestion
from scaledl.distributed.parallelize import ModelBuilder
from tests.unit.callbacks.conftest import Scripted


class Rates(pl.Callback):
    """The rate with which each step was taken."""

    def __init__(self) -> None:
        self.taken: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.taken.append([group["lr"] for group in optimizer.param_groups])


@pytest.mark.parametrize("accumulation", [1, 3])
def test_rates_grow_by_equal_factors_once_a_step(fit, accumulation: int) -> None:
    grow, seen = LrRange(1e-5, 1e-2, 4, own=0.1), Rates()
    fit(grow, seen, max_steps=10, accumulation=accumulation)
    expected = [1e-5, 1e-4, 1e-3, 1e-2]
    assert grow.rates == pytest.approx(expected)
    assert seen.taken == [pytest.approx([rate, rate]) for rate in expected]  # matrices and biases
    assert len(grow.losses) == 4


def test_it_ends_where_the_loss_explodes(fit) -> None:
    task = Scripted(ModelBuilder(partial(nn.Linear, 2, 1)), partial(torch.optim.SGD, lr=1.0))
    grow = LrRange(1e-4, 1e6, 60, own=1.0)
    fit(grow, max_steps=60, task=task)
    assert len(grow.losses) < 55
    path = smoothed(grow.losses)
    assert not math.isfinite(path[-1]) or path[-1] > 4 * min(path)


def test_smoothing_begins_at_the_first_value() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.5 * 1 + 3) / 1.5])


def test_the_suggestion_is_where_a_curve_falls_fastest() -> None:
    rates = [10 ** (-6 + 6 * index / 99) for index in range(100)]
    middle = 1e-3  # a step down around it, over a decade; then up
    losses = [2 - 1 / (1 + (middle / rate) ** 2) + (rate > 0.1) * 50 * rate for rate in rates]
    found = suggestion(rates, losses)
    assert found is not None
    assert middle < found < 10 * middle  # a moving average is late


def test_noise_is_no_fall() -> None:
    draw = random.Random(0)
    assert (
        suggestion([10 ** (-6 + step / 10) for step in range(60)], [0.7 + draw.gauss(0, 0.02) for _ in range(60)])
        is None
    )


@pytest.mark.parametrize("losses", [[1.0] * 50, [float(step) for step in range(50)], [math.nan] * 50, []])
def test_there_is_none_where_nothing_falls(losses: list[float]) -> None:
    assert suggestion([10 ** (-6 + step / 10) for step in range(50)], losses) is None
