"""BYOL's target is the average that callbacks.ema keeps, and the weights come back after it."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from scaledl.callbacks.ema import EMA
from scaledl.data.augment import RandomAffine
from scaledl.data.digits import Digits
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.models.projected import Projected
from scaledl.tasks.byol import BYOL

AUGMENT = {"affine": RandomAffine(degrees=20, translate=0.1)}
BUILDER = ModelBuilder(lambda: Projected(MLP(64, [32], 32), hidden_dim=32, out_dim=16, predictor_dim=32))


class Watched(BYOL):
    """Notes the weights that each forward pass reads."""

    def configure_model(self) -> None:
        super().configure_model()
        self.seen: list[tuple[bool, Tensor]] = []

        def note(model: Any, *_: Any) -> None:
            if model.training:
                self.seen.append((torch.is_grad_enabled(), model.projection.weight.detach().clone()))

        self.model.register_forward_pre_hook(note)


def test_the_target_is_the_average_and_the_weights_come_back(fit: Any) -> None:
    task = Watched(BUILDER, partial(torch.optim.AdamW, lr=1e-2), augment=AUGMENT)
    trainer = fit(EMA(decay=0.5), max_steps=3, task=task, data=Digits(16, 16))
    targets = [weight for learns, weight in task.seen if not learns]
    online = [weight for learns, weight in task.seen if learns]
    assert len(targets) == len(online) == 3
    torch.testing.assert_close(targets[0], online[0])
    average = online[0].clone()
    for step, (target, weight) in enumerate(zip(targets[1:], online[1:], strict=True), start=1):
        average.lerp_(weight, 1 - min(0.5, (1 + step) / (10 + step)))
        torch.testing.assert_close(target, average)
        assert (target - weight).abs().max() > 1e-4
    assert trainer.strategy.average is not None


def test_an_average_that_nobody_keeps_is_asked_for(fit: Any) -> None:
    task = BYOL(BUILDER, partial(torch.optim.AdamW, lr=1e-2), augment=AUGMENT)
    with pytest.raises(ValueError, match=r"callbacks.ema: add that callback"):
        fit(max_steps=1, task=task, data=Digits(16, 16))
