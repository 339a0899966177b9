"""Curves over seeds and the band around their mean."""

import numpy as np
import pytest
from scipy.stats import sem
from scipy.stats import t as student

from scripts.compare import Run
from scripts.returns import band, curve, draw, row


def run(returns: list[float], env_steps: int = 50) -> Run:
    """Ten optimiser steps for each evaluation, with so many steps in the environment each."""
    log: list[dict] = [
        {"step": step, "train/env_steps": env_steps * step} for step in range(5, 10 * len(returns) + 1, 5)
    ]
    log += [{"step": 10 * (index + 1), "val/return": value} for index, value in enumerate(returns)]
    log.append({"step": 10 * len(returns), "test/return": 3.0})
    return Run(log, {"best": {"value": max(returns)}, "metrics": {"test/return": 3.0}})


def test_a_curve_is_over_steps_in_the_environment() -> None:
    steps, values = curve(run([1.0, 4.0]))
    assert (steps.tolist(), values.tolist()) == ([500.0, 1000.0], [1.0, 4.0])


def test_the_band_is_the_confidence_interval_of_the_mean() -> None:
    values = np.array([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])
    steps, mean, half = band([curve(run(list(v))) for v in values], points=2)
    assert steps.tolist() == [500, 1000]
    assert mean.tolist() == pytest.approx([4.0, 5.0])
    low, high = student.interval(0.95, 2, loc=4.0, scale=sem(values[:, 0]))
    assert half.tolist() == pytest.approx([(high - low) / 2, 0.0])
    assert band([curve(run([1.0, 2.0]))], points=2)[2].tolist() == [0.0, 0.0]


def test_curves_of_other_lengths_are_compared_where_all_are_known(tmp_path) -> None:
    runs = {"a": [run([1.0, 2.0, 3.0]), run([1.0, 2.0, 3.0], env_steps=60)], "b": [run([5.0, 5.0])]}
    steps, mean, _ = band([curve(one) for one in runs["a"]])
    assert (steps[0], steps[-1]) == (600, 1500)
    assert mean[0] == pytest.approx((1.2 + 1.0) / 2)
    draw(runs, "two", tmp_path / "returns.png")
    assert (tmp_path / "returns.png").stat().st_size > 5_000
    assert row("b", runs["b"]) == ["b", "1,000", "5.0000", "5.0000", "3.0000"]
