"""Loads are those of the whole step, and a model without experts is told."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scaledl import checkpoint
from scaledl.callbacks import expert_load
from scaledl.callbacks.checkpoint import Checkpoint
from scaledl.callbacks.expert_load import ExpertLoad
from scaledl.callbacks.metrics import Metrics
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.moe import MixtureOfExperts
from scaledl.tasks.base import Task


class Points(nn.Module):
    """Two layers of experts over the points of a micro-batch, which are one sequence."""

    def __init__(self, balance: str = "bias") -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MixtureOfExperts(2, 4, 1, 3, balance=balance, balance_rate=0.5, init_std=1.0)  # type: ignore[arg-type]
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x

    def auxiliary_losses(self) -> dict[str, Tensor]:
        return {"balance_loss": sum(sum(layer.router.losses.values()) for layer in self.layers)} if self.loss else {}

    @property
    def loss(self) -> bool:
        return self.layers[0].router.balance == "loss"

    def step_counts(self) -> Tensor:
        return torch.stack([layer.router.load for layer in self.layers])

    def after_step(self, counts: Tensor, good: Tensor) -> None:
        noted.append((counts.clone(), good.item()))
        for layer, load in zip(self.layers, counts, strict=True):
            layer.router.after_step(load, good)


class Sums(Task):
    bad = -1  # the micro-batch whose loss is not finite

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        loss = self.model(batch["x"]).square().mean()
        if self.trainer.training and self.trainer.fit_loop.total_batch_idx == self.bad:
            loss = loss * float("nan")
        return {"loss": loss}


noted: list[tuple[Tensor, bool]] = []


def task(**arguments) -> Sums:
    noted.clear()
    return Sums(ModelBuilder(partial(Points, **arguments)), partial(torch.optim.AdamW, lr=0.01))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    monkeypatch.setattr(expert_load, "record", lambda trainer, values: found.append(values))
    return found


def test_loads_are_of_all_micro_batches_and_balance_once_a_step(fit, tmp_path: Path, logged) -> None:
    callback = ExpertLoad(max_columns=4)
    trained = task()
    fit(callback, max_steps=6, accumulation=3, task=trained)
    assert len(noted) == 6
    assert all(good and (counts.sum(1) == 12).all() for counts, good in noted)
    bias = sum(0.5 * (3 - counts).sign() for counts, _ in noted)
    torch.testing.assert_close(torch.stack([layer.router.bias for layer in trained.model.layers]), bias)
    first = noted[0][0].amax(1) / 3
    assert logged[0] == {
        "train/expert_load_max": first.max().item(),
        "train/expert_load_max_0": first[0].item(),
        "train/expert_load_max_1": first[1].item(),
    }
    assert callback._steps == [1, 3, 5]
    assert (tmp_path / "plots" / "expert_load.png").stat().st_size > 1000


def test_a_resumed_run_draws_all_its_steps(fit, tmp_path: Path, logged) -> None:
    fit(ExpertLoad(max_columns=4), Checkpoint(every_n_steps=4), max_steps=4, task=task())
    callback = ExpertLoad(max_columns=4)
    fit(callback, Checkpoint(every_n_steps=9), max_steps=6, task=task(), resume=checkpoint.latest(tmp_path))
    assert callback._steps == [1, 3, 5]
    assert all(loads.shape == (2, 4) for loads in callback._loads)


def test_a_bad_step_moves_no_bias(fit, logged) -> None:
    trained = task()
    trained.bad = 4  # the second of the third step
    fit(ExpertLoad(), max_steps=3, accumulation=2, task=trained)
    assert [good for _, good in noted] == [True, True, False]
    bias = sum(0.5 * (2 - counts).sign() for counts, _ in noted[:2])
    torch.testing.assert_close(torch.stack([layer.router.bias for layer in trained.model.layers]), bias)


def test_auxiliary_losses_are_in_the_loss_and_beside_it(fit, logged) -> None:
    losses: list[dict[str, Tensor]] = []

    class Noting(Metrics):
        def on_train_batch_end(self, trainer, pl_module, *arguments) -> None:
            losses.append(dict(pl_module.step_metrics))

    trained = task(balance="loss")
    fit(Noting(), max_steps=1, task=trained)
    alone = task(balance="none")
    fit(Noting(), max_steps=1, task=alone)
    with_, without = losses
    assert with_["balance_loss"] > 0.5
    torch.testing.assert_close(with_["loss"], without["loss"] + with_["balance_loss"])
    assert "balance_loss" not in without


def test_a_model_without_experts_is_told(fit) -> None:
    with pytest.raises(ValueError, match="Linear has none: remove it"):
        fit(ExpertLoad(), max_steps=1)
    with pytest.raises(ValueError, match="max_columns=1"):
        ExpertLoad(max_columns=1)
