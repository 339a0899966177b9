from functools import partial

import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.tasks.regression import Regression


def make(out_dim: int = 1) -> Regression:
    task = Regression(ModelBuilder(partial(MLP, 4, [64], out_dim)), partial(torch.optim.AdamW, lr=1e-2))
    task.configure_model()
    return task


def batch(*shape: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(50, 4, generator=generator), "y": 3 + torch.randn(50, *shape, generator=generator)}


def test_metrics_of_an_evaluation_are_sklearns() -> None:
    task = make().eval()
    samples = batch()
    means = {name: value.item() for name, value in task.objective(samples).items()}
    found = task.summarize(means)
    y, predicted = samples["y"].numpy(), task.model(samples["x"])[:, 0].detach().numpy()
    expected = {
        "loss": mean_squared_error(y, predicted),
        "mae": mean_absolute_error(y, predicted),
        "rmse": mean_squared_error(y, predicted) ** 0.5,
        "r2": r2_score(y, predicted),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_training_logs_only_what_is_a_mean() -> None:
    assert set(make().objective(batch())) == {"loss", "mae"}


def test_several_numbers_in_any_shape() -> None:
    task = make(6).eval()
    samples = batch(2, 3)
    metrics = task.objective(samples)
    expected = (task.model(samples["x"]).view(50, 2, 3) - samples["y"]).square().mean()
    torch.testing.assert_close(metrics["loss"], expected)
    assert set(task.summarize({name: value.item() for name, value in metrics.items()})) == {"loss", "mae", "rmse"}


def test_a_target_that_never_changes_has_no_r2() -> None:
    task = make().eval()
    samples = {**batch(), "y": torch.ones(50)}
    assert "r2" not in task.summarize({name: value.item() for name, value in task.objective(samples).items()})


def test_it_overfits_one_batch() -> None:
    task, samples = make(), {name: value[:16] for name, value in batch().items()}
    optimizer = task.configure_optimizers()["optimizer"]
    for _ in range(400):
        loss = task.objective(samples)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01


def test_errors_are_taken_in_fp32() -> None:
    task = make()
    task.model.bfloat16()
    samples = {name: value.bfloat16() for name, value in batch().items()}
    assert task.objective(samples)["loss"].dtype == torch.float32


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"y holds torch.int64 numbers, as classes are; take task=classification"):
        make().objective({**batch(), "y": torch.zeros(50, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"gives \(1,\) outputs a sample, but y has \(2, 3\): set model.out_dim to 6"):
        make().objective(batch(2, 3))
