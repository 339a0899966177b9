"""NT-Xent and triplets against slow loops, ranks that share a batch, and what is refused."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.data.augment import RandomAffine
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.tasks.base import Task
from scaledl.tasks.contrastive import SimCLR, Triplet, nt_xent, triplet_loss, two_views

AUGMENT = {"affine": RandomAffine(degrees=20, translate=0.1)}


def unit(samples: int = 6, dim: int = 4, seed: int = 0) -> Tensor:
    z = torch.randn(2, samples, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(z, dim=2)


def noise(count: int = 8) -> Noise:
    return Noise(0, torch.arange(count))


def batch(count: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(count, 1, 8, 8, generator=generator), "y": torch.arange(count) % 3}


def make(kind: type[Task], **settings: object) -> Task:
    model = ModelBuilder(partial(MLP, 64, [64], 16))
    task = kind(model, partial(torch.optim.AdamW, lr=3e-3), augment=AUGMENT, **settings)
    task.configure_model()
    task.noise = noise()
    return task


def test_nt_xent_of_orthogonal_samples_has_its_closed_form() -> None:
    """Both views of N samples at one of N axes: the other view at cosine 1, 2N - 2 views at cosine 0."""
    n, t = 5, 0.5
    z = torch.eye(n).expand(2, n, n)
    loss, acc = nt_xent(z, z, 0, t)
    assert loss.item() == pytest.approx(-1 / t + math.log(math.exp(1 / t) + 2 * n - 2), rel=1e-6)
    assert acc == 1


def test_nt_xent_equals_a_double_loop() -> None:
    z, t = unit(), 0.3
    views = z.flatten(0, 1)
    losses = []
    for i in range(12):
        j = (i + 6) % 12
        scores = [math.exp(views[i] @ views[k] / t) for k in range(12)]
        losses.append(-math.log(scores[j] / (sum(scores) - scores[i])))
    assert nt_xent(z, z, 0, t)[0].item() == pytest.approx(sum(losses) / 12, rel=1e-10)


@pytest.mark.parametrize("loss", ["nt_xent", "hard", "semi_hard"])
def test_shares_of_a_batch_average_to_the_whole(loss: str) -> None:
    z, ids = unit(), torch.tensor([0, 1, 0, 2, 1, 0])

    def of(part: slice) -> tuple[Tensor, Tensor]:
        if loss == "nt_xent":
            return nt_xent(z[:, part], z, part.start, 0.2)
        return triplet_loss(z[:, part], z, ids, part.start, 0.4, loss)  # type: ignore[arg-type]

    shares = [of(slice(first, first + 2)) for first in (0, 2, 4)]
    for whole, of_shares in zip(of(slice(0, 6)), zip(*shares, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(of_shares).mean(), whole)


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 1, 0], [0, 0, 0, 0, 0, 1]])
def test_triplets_equal_a_triple_loop(mining: str, ids: list[int]) -> None:
    z, margin = unit(), 0.4
    views, of_views = z.flatten(0, 1), ids * 2
    anchors = []
    for a in range(12):
        distance = [float((views[a] - views[k]).square().sum()) for k in range(12)]
        positives = [distance[k] for k in range(12) if of_views[k] == of_views[a] and k != a]
        negatives = [distance[k] for k in range(12) if of_views[k] != of_views[a]]
        if mining == "hard":
            pairs = [(max(positives), min(negatives))]
        else:
            pairs = [(p, min((n for n in negatives if n > p), default=max(negatives))) for p in positives]
        anchors.append(sum(max(0.0, p - n + margin) for p, n in pairs) / len(pairs))
    found, _ = triplet_loss(z, z, torch.tensor(ids), 0, margin, mining)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(sum(anchors) / 12, rel=1e-9)
    assert found > 0


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
def test_without_a_negative_there_is_nothing_to_learn(mining: str) -> None:
    z = unit(1).requires_grad_()
    loss, _ = triplet_loss(z, z, torch.zeros(1, dtype=torch.int64), 0, 0.2, mining)  # type: ignore[arg-type]
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_views_differ_and_do_not_depend_on_ranks() -> None:
    x = batch()["x"]
    views = two_views(x, AUGMENT, noise())
    assert (views[0] - views[1]).abs().amax((1, 2, 3)).min() > 0.1
    half = two_views(x[4:], AUGMENT, Noise(0, torch.arange(4, 8)))
    torch.testing.assert_close(half, views[:, 4:])


@pytest.mark.parametrize(
    ("kind", "settings", "floor"),
    [
        (SimCLR, {"temperature": 0.2}, 0.95),
        (Triplet, {"mining": "semi_hard"}, 0.95),
        (Triplet, {"mining": "hard", "positives": "labels"}, 0.95),
    ],
)
def test_it_overfits_one_batch(kind: type[Task], settings: dict, floor: float) -> None:
    task = make(kind, **settings)
    optimizer = task.configure_optimizers()["optimizer"]
    first = task.objective(batch())
    for _ in range(60):
        found = task.objective(batch())
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["loss"] < 0.5 * first["loss"]
    assert found["acc"] >= floor


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SimCLR, {"augment": AUGMENT, "temperature": 0.0}, "temperature=0.0 must be above 0"),
        (SimCLR, {"augment": {}}, "task.augment is empty"),
        (Triplet, {"augment": AUGMENT, "margin": 0.0}, "margin=0.0 must be above 0"),
        (Triplet, {"augment": {}}, "task.augment is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type[Task], settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(ModelBuilder(partial(MLP, 64, [8], 4)), torch.optim.AdamW, **settings)
