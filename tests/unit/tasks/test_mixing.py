"""Augmentation, mixup and cutmix: in training only, the same on any number of ranks, with targets that fit x."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from scaledl.data.augment import HorizontalFlip
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.tasks.classification import Classification, mixed, partners, symmetric_beta

CLASSES = 4


def noise(first: int = 0, count: int = 16, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(first, first + count))


def images(count: int = 16, channels: int = 3, size: int = 6) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def labels(count: int = 16) -> Tensor:
    return torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(1))


def make(**settings: Any) -> Classification:
    task = Classification(ModelBuilder(partial(MLP, 108, [8], CLASSES)), torch.optim.AdamW, CLASSES, **settings)
    task.configure_model()
    return task


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    shares = symmetric_beta(alpha, noise(count=20_000), "a").double().numpy()
    assert ((shares >= 0) & (shares <= 1)).all()
    points = np.linspace(0.01, 0.99, 50)  # nearer to 0 and 1, float32 rounds
    found = (shares[:, None] < points).mean(0)
    np.testing.assert_allclose(found, stats.beta(alpha, alpha).cdf(points), atol=0.012)


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
def test_extreme_shares_are_still_numbers(alpha: float) -> None:
    shares = symmetric_beta(alpha, noise(count=20_000), "a")
    assert shares.isfinite().all()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
    assert shares.std().item() == pytest.approx((4 * (2 * alpha + 1)) ** -0.5, rel=0.05)


def test_partners_are_mutual_neighbours_of_the_stream() -> None:
    assert partners(torch.arange(8)).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    x = images()
    assert torch.equal(partners(partners(x)), x)
    with pytest.raises(ValueError, match=r"pair the samples of a micro-batch, but there are 3 .* even"):
        partners(torch.arange(3))


def test_mixup_blends_a_sample_with_its_partner_by_its_share() -> None:
    x = images()
    found, share = mixed(x, noise(), 0.4, 0.0)
    by_hand = torch.stack([share[i] * x[i] + (1 - share[i]) * x[i ^ 1] for i in range(16)])
    torch.testing.assert_close(found, by_hand)
    assert len(share.unique()) == 16
    vectors = x.flatten(1)
    torch.testing.assert_close(mixed(vectors, noise(), 0.4, 0.0)[0], by_hand.flatten(1))


def test_cutmix_puts_in_one_rectangle_whose_area_is_what_is_missing() -> None:
    size, count = 12, 512
    x = images(count, 2, size)
    found, share = mixed(x, noise(count=count), 0.0, 1.0)
    foreign = found != x
    assert torch.equal(found, torch.where(foreign, partners(x), x))
    assert torch.equal(foreign[:, 0], foreign[:, 1])
    rows, columns = foreign[:, 0].any(2), foreign[:, 0].any(1)
    assert torch.equal(foreign[:, 0], rows[:, :, None] & columns[:, None, :])
    for sides in (rows, columns):  # without holes
        assert (sides.int().diff(dim=1).abs().sum(1) <= 2).all()
    torch.testing.assert_close(1 - share, foreign[:, 0].float().mean((1, 2)))
    # Before it is cut at the edges, a square of a uniform area has the side sqrt(area): Beta(1, 1).
    inside = ~(rows[:, 0] | rows[:, -1] | columns[:, 0] | columns[:, -1])
    assert (rows.sum(1) - columns.sum(1))[inside].abs().max() <= 1
    assert 0.6 < share.mean() < 0.8


def test_with_both_each_sample_gets_one_of_them() -> None:
    x = images(400)
    found, share = mixed(x, noise(count=400), 1.0, 1.0)
    blended, cut = mixed(x, noise(count=400), 1.0, 0.0)[0], mixed(x, noise(count=400), 0.0, 1.0)[0]
    is_blended, is_cut = ((found - other).abs().flatten(1).amax(1) < 1e-6 for other in (blended, cut))
    assert (is_blended | is_cut).all()
    assert is_blended.float().mean().item() == pytest.approx(0.5, abs=0.08)
    by_hand = torch.where(is_blended, mixed(x, noise(count=400), 1.0, 0.0)[1], mixed(x, noise(count=400), 0.0, 1.0)[1])
    torch.testing.assert_close(share, by_hand)


@pytest.mark.parametrize("settings", [{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 1.0}])
def test_parts_of_a_batch_are_mixed_as_the_whole(settings: dict) -> None:
    """Whatever the ranks and micro-batches: here one batch of 16, or 4 of 4, whose losses average to its loss."""
    task, x, y = make(**settings, augment={"flip": HorizontalFlip()}), images(), labels()

    def loss(first: int, count: int) -> Tensor:
        task.noise = noise(first, count)
        return task.objective({"x": x[first : first + count], "y": y[first : first + count]})["loss"]

    torch.testing.assert_close(torch.stack([loss(at, 4) for at in range(0, 16, 4)]).mean(), loss(0, 16))
    task.noise = noise(16)
    assert not torch.equal(task.objective({"x": x, "y": y})["loss"], loss(0, 16))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_both_classes_by_their_shares(smoothing: float) -> None:
    task, x, y = make(mixup=0.5, label_smoothing=smoothing), images(), labels()
    task.noise = noise()
    metrics = task.objective({"x": x, "y": y})
    blended, share = mixed(x, noise(), 0.5, 0.0)
    logits = task.model(blended)
    own, other = (F.cross_entropy(logits, t, label_smoothing=smoothing, reduction="none") for t in (y, partners(y)))
    torch.testing.assert_close(metrics["loss"], (share * own + (1 - share) * other).mean())
    larger = torch.where(share >= 0.5, y, partners(y))
    assert metrics["acc"] == (logits.argmax(1) == larger).float().mean()


def test_changes_come_in_their_order_each_with_draws_of_its_own_and_in_training_only() -> None:
    seen = []

    def change(name: str) -> Callable[[Tensor, Noise, str], Tensor]:
        def apply(x: Tensor, noise: Noise, key: str) -> Tensor:
            seen.append((name, key))
            return x + 1

        return apply

    task, x, y = make(augment={"b": change("first"), "a": change("second")}, mixup=1.0), images(), labels()
    task.noise = noise()
    trained = task.objective({"x": x, "y": y})["loss"]
    assert seen == [("first", "augment/b"), ("second", "augment/a")]
    task.augment = {}
    assert torch.equal(task.objective({"x": x + 2, "y": y})["loss"], trained)

    task.eval()
    seen.clear()
    plain = make().eval()
    for evaluated in (task, make(augment={"a": change("a")}, cutmix=1.0).eval()):
        assert torch.equal(evaluated.objective({"x": x, "y": y})["loss"], plain.objective({"x": x, "y": y})["loss"])
    assert not seen


def test_bf16_images_are_mixed_in_their_type() -> None:
    for settings in ((0.3, 0.0), (0.0, 1.0), (0.3, 1.0)):
        assert mixed(images().bfloat16(), noise(), *settings)[0].dtype == torch.bfloat16


def test_many_classes_are_judged_by_five_too() -> None:
    logits = torch.randn(64, 30, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 30
    task = Classification(ModelBuilder(nn.Identity), torch.optim.AdamW, 30)
    task.configure_model()
    order = logits.argsort(1, descending=True)
    by_hand = np.mean([int(y[i]) in order[i, :5].tolist() for i in range(64)])
    assert task.objective({"x": logits, "y": y})["acc5"].item() == pytest.approx(by_hand)
    assert "acc5" not in make().objective({"x": images(), "y": labels()})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": -0.1}, "mixup=-0.1 must be at least 0"),
        ({"cutmix": 1.0, "loss": "perceptron"}, "cutmix=1.0 is of cross_entropy; set it to 0 with loss=perceptron"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("x", [torch.ones(4, 5), torch.ones(4, 3, 6, 6, dtype=torch.int64)])
def test_what_cannot_be_mixed_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes numbers and cutmix=1.0 images"):
        mixed(x, noise(count=4), 0.0, 1.0)
