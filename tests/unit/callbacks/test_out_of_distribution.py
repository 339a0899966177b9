from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from scaledl.callbacks.metrics import Metrics
from scaledl.callbacks.out_of_distribution import OutOfDistribution, aurocs
from scaledl.data.digits import Digits
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class Ink(Task):
    """The energy is how far the share of ink is from that of a digit, 0.3."""

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.model(batch["x"].flatten(1)).square().mean()}

    def energy(self, x: Tensor) -> Tensor:
        return (x.flatten(1).mean(1) - 0.3).abs()


def test_the_area_counts_pairs_in_the_right_order() -> None:
    energies = {"data": np.array([0.0, 1.0]), "far": np.array([2.0, 3.0]), "mixed": np.array([0.5, 1.0, -1.0])}
    assert aurocs(energies) == pytest.approx({"far": 1.0, "mixed": (1 + 1.5 + 0) / 6})


def test_foreign_samples_are_told_from_data_beside_a_mixture(fit, tmp_path: Path) -> None:
    task = Ink(ModelBuilder(partial(nn.Linear, 64, 1)), partial(torch.optim.SGD, lr=0.0))
    metrics = Metrics()
    trainer = fit(
        OutOfDistribution(held_out=[9]),
        metrics,
        task=task,
        data=Digits(64, 64, leave_out=[9]),
        max_steps=1,
        val_every=1,
    )
    found = {name: value.item() for name, value in trainer.callback_metrics.items() if "auroc" in name}
    assert set(found) == {"val/auroc_uniform", "val/auroc_shuffled", "val/auroc_class_9"}
    assert found["val/auroc_uniform"] > 0.999  # whose ink is 0.5
    assert found["val/auroc_shuffled"] == 0.5  # which has the same ink
    baselines = {name: value for name, value in metrics.last.items() if name.startswith("baseline/")}
    assert baselines["baseline/gmm_auroc_uniform"] > 0.999
    assert baselines["baseline/gmm_auroc_shuffled"] > 0.999
    assert baselines["baseline/gmm_auroc_class_9"] > 0.8
    assert metrics.last["test/auroc_uniform"] > 0.999
    assert (tmp_path / "plots" / "energies.png").stat().st_size > 5_000


def test_what_cannot_be_is_refused(fit) -> None:
    with pytest.raises(ValueError, match="Scripted has no energy"):
        fit(OutOfDistribution(), max_steps=1)
    task = Ink(ModelBuilder(partial(nn.Linear, 64, 1)), partial(torch.optim.SGD, lr=0.0))
    with pytest.raises(ValueError, match=r"held_out=\[9\], but training sees \[9\]"):
        fit(OutOfDistribution(held_out=[9]), task=task, data=Digits(64, 64), max_steps=1)
