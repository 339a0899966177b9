"""BYOL: the loss by hand, and a target whose bf16 copies stay its own."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.data.augment import RandomAffine
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.models.projected import Projected
from scaledl.tasks.byol import BYOL
from scaledl.tasks.contrastive import two_views

AUGMENT = {"affine": RandomAffine(degrees=20, translate=0.1)}


def make(predictor_dim: int | None = 32) -> BYOL:
    def model() -> Projected:
        return Projected(MLP(64, [32], 32), hidden_dim=32, out_dim=16, predictor_dim=predictor_dim)

    task = BYOL(ModelBuilder(model), partial(torch.optim.AdamW, lr=3e-3), augment=AUGMENT)
    task.configure_model()
    task.noise = Noise(0, torch.arange(8))
    return task


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


def test_the_loss_is_that_of_both_orders_of_the_views() -> None:
    task = make()
    one, two = two_views(batch()["x"], AUGMENT, task.noise)
    cosines = [F.cosine_similarity(task.model(a, predict=True), task.model(b)) for a, b in ((one, two), (two, one))]
    found = task.objective(batch())
    torch.testing.assert_close(found["loss"], 2 - torch.cat(cosines).mean() * 2)
    found["loss"].backward()
    assert all(parameter.grad is not None for parameter in task.model.parameters())


def test_it_overfits_one_batch() -> None:
    task = make()
    optimizer = task.configure_optimizers()["optimizer"]
    first = task.objective(batch())
    for _ in range(60):
        found = task.objective(batch())
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["loss"] < 0.1 * first["loss"]


def test_a_model_without_a_predictor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.predictor_dim is null"):
        make(predictor_dim=None).objective(batch())


def test_bf16_copies_of_the_target_do_not_reach_the_other_network() -> None:
    """autocast remembers the bf16 copy of a weight, and one made without gradients has none to give."""
    task = make()
    masters = list(task.model.parameters())
    average = [master.detach() * 0.5 for master in masters]
    strategy = SimpleNamespace(average=average, masters=lambda: masters, refresh=lambda: None)
    task._trainer = SimpleNamespace(strategy=strategy)  # type: ignore[assignment]
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.objective(batch())["loss"]
    loss.backward()
    assert all(master.grad is not None and master.grad.any() for master in masters)
