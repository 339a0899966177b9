from functools import partial

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.models.perceptron import Perceptron
from scaledl.tasks.classification import Classification, perceptron_loss


def make(model: partial, optimizer: partial, **settings: object) -> Classification:
    task = Classification(ModelBuilder(model), optimizer, **settings)
    task.configure_model()
    return task


def step(task: Classification, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    metrics = task.objective(batch)
    optimizer.zero_grad()
    metrics["loss"].backward()
    optimizer.step()
    return metrics


def random_batch(samples: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 2, 5, generator=generator)
    return {"x": x, "y": torch.randint(0, 4, (samples,), generator=generator)}


def test_perceptron_loss_equals_a_hand_example() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 4.0], [0.0, -1.0, -2.0]], requires_grad=True)
    y = torch.tensor([0, 0, 2])
    # Best wrong minus right: 3 - 1 = 2; 4 - 5 < 0 counts 0; 0 - (-2) = 2.
    loss = perceptron_loss(logits, y)
    assert loss.item() == pytest.approx(4 / 3)
    loss.backward()
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -1.0]]) / 3
    torch.testing.assert_close(logits.grad, expected)


def test_one_sgd_step_is_rosenblatts_update() -> None:
    """A wrong sample is added to its own class and taken from the one that won; a right one changes nothing."""
    lr = 0.5
    task = make(partial(Perceptron, 3, 4), partial(torch.optim.SGD, lr=lr), num_classes=4, loss="perceptron")
    optimizer = task.configure_optimizers()["optimizer"]
    weight = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    with torch.no_grad():
        task.model.out.weight.copy_(weight)
    x = torch.tensor([[1.0, 2.0, 3.0]])  # scores 0, 7, 2, 2
    step(task, optimizer, {"x": x, "y": torch.tensor([2])})
    expected = weight.clone()
    expected[2] += lr * x[0]
    expected[1] -= lr * x[0]
    torch.testing.assert_close(task.model.out.weight.data, expected)
    torch.testing.assert_close(task.model.out.bias.data, torch.tensor([0.0, -lr, lr, 0.0]))
    before = [p.clone() for p in task.model.parameters()]
    step(task, optimizer, {"x": torch.tensor([[3.0, 0.0, 0.0]]), "y": torch.tensor([3])})
    assert all(torch.equal(old, new) for old, new in zip(before, task.model.parameters(), strict=True))


def test_rosenblatts_rule_leaves_zero_weights_and_converges_on_separable_points() -> None:
    task = make(partial(Perceptron, 2, 2), partial(torch.optim.SGD, lr=1.0), num_classes=2, loss="perceptron")
    optimizer = task.configure_optimizers()["optimizer"]
    x = torch.tensor([[1.0, 1.0], [2.0, 0.5], [-1.0, -0.5], [-0.5, -2.0]])
    y = torch.tensor([0, 0, 1, 1])
    for _ in range(10):
        mistakes = sum(
            1 - step(task, optimizer, {"x": x[i : i + 1], "y": y[i : i + 1]})["acc"].item() for i in range(4)
        )
    assert any(p.any() for p in task.model.parameters())
    assert mistakes == 0


def test_metrics_are_means_over_the_batch() -> None:
    task = make(partial(MLP, 10, [8], 4), partial(torch.optim.AdamW), num_classes=4)
    batch = random_batch()
    metrics = task.objective(batch)
    probabilities = task.model(batch["x"]).double().softmax(1)
    right = probabilities[torch.arange(16), batch["y"]]
    assert metrics["loss"].item() == pytest.approx(-right.log().mean().item(), rel=1e-5)
    assert metrics["acc"].item() == pytest.approx((probabilities.argmax(1) == batch["y"]).float().mean().item())
    assert task.weight(batch) == 16


def test_label_smoothing_mixes_in_the_uniform_distribution() -> None:
    batch = random_batch()
    plain, smooth = (
        make(partial(MLP, 10, [8], 4), partial(torch.optim.AdamW), num_classes=4, label_smoothing=share)
        for share in (0.0, 0.2)
    )
    uniform = -plain.model(batch["x"]).log_softmax(1).mean()
    expected = 0.8 * plain.objective(batch)["loss"] + 0.2 * uniform
    torch.testing.assert_close(smooth.objective(batch)["loss"], expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "perceptron"])
def test_it_overfits_one_batch(loss: str) -> None:
    task = make(partial(MLP, 10, [64], 4), partial(torch.optim.AdamW, lr=1e-2), num_classes=4, loss=loss)
    optimizer, batch = task.configure_optimizers()["optimizer"], random_batch()
    first = step(task, optimizer, batch)
    for _ in range(100):
        last = step(task, optimizer, batch)
    assert first["acc"] < 0.8
    assert last["acc"] == 1
    assert last["loss"] < 0.02


def test_scores_are_compared_in_fp32() -> None:
    task = make(partial(MLP, 10, [8], 4), partial(torch.optim.AdamW), num_classes=4)
    task.model.bfloat16()
    batch = random_batch()
    assert task.objective({**batch, "x": batch["x"].bfloat16()})["loss"].dtype == torch.float32


def test_outputs_of_another_number_than_classes_are_refused() -> None:
    task = make(partial(MLP, 10, [8], 5), partial(torch.optim.AdamW), num_classes=4)
    with pytest.raises(ValueError, match=r"the model gives \(5,\) outputs a sample, but task.num_classes=4"):
        task.objective(random_batch())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes=1: a choice needs at least 2"),
        ({"num_classes": 3, "label_smoothing": 1.0}, r"label_smoothing=1.0 must lie in \[0, 1\)"),
        ({"num_classes": 3, "label_smoothing": 0.1, "loss": "perceptron"}, "label_smoothing=0.1 is of cross_entropy"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classification(ModelBuilder(nn.Identity), partial(torch.optim.SGD), **settings)
