"""Schedules against their closed forms."""

import math

import pytest
import torch

from scaledl.optim.groups import parameter_groups
from scaledl.optim.schedule import constant, cosine, linear, wsd


def rates(make, steps: int, **arguments) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = make(optimizer, **arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_rises_to_the_full_rate() -> None:
    assert rates(constant, 6, warmup_steps=3) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])


def test_linear_ends_at_min_ratio() -> None:
    found = rates(linear, 11, max_steps=10, min_ratio=0.1)
    assert found[0] == 2.0
    assert found[5] == pytest.approx(1.1)
    assert found[10] == pytest.approx(0.2)


def test_cosine_is_half_a_cosine_after_the_warmup() -> None:
    found = rates(cosine, 13, max_steps=12, warmup_steps=2)
    assert found[7] == pytest.approx(1.0)
    assert found[4] == pytest.approx(1 + math.cos(math.pi * 0.2))
    assert found[12] == pytest.approx(0.0)


def test_wsd_is_flat_then_falls() -> None:
    found = rates(wsd, 11, max_steps=10, decay_ratio=0.5)
    assert found[:6] == pytest.approx([2.0] * 6)
    assert found[8] == pytest.approx(0.8)
    assert found[10] == pytest.approx(0.0)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Conv2d(1, 2, 3))
    matrices, vectors = parameter_groups(model)
    assert {p.ndim for p in matrices["params"]} == {2, 4}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert "weight_decay" not in matrices
    assert vectors["weight_decay"] == 0.0
    assert sum(len(g["params"]) for g in (matrices, vectors)) == len(list(model.parameters()))
