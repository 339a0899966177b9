"""Two views of a sample are near one another and far from those of all other samples: SimCLR and the triplet loss."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.gather import gather
from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.precision import without_autocast
from scaledl.tasks.base import Task

Augmentation = Callable[[Tensor, Noise, str], Tensor]


class SimCLR(Task):
    """The other view of a sample is told from all views of all others (Chen et al. 2020, arXiv:2002.05709).

    Reads `x` (B, ...). Each rank compares its samples with the global batch, and gradients flow to all ranks
    (distributed/gather.py): losses and gradients are those of one process. So the batch is one micro-batch of each rank
    (`needs`). An evaluation compares the samples of one evaluation batch. `acc` is how often the other view is nearest.

    Args:
        temperature: of the softmax over cosines.
        augment: changes that make a view of x (data/augment.py), by a name that keys their noise, in their order.

    Raises:
        ValueError: temperature is not above 0, or there is nothing to make views with.
    """

    needs = ("whole_batch",)

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        augment: dict[str, Augmentation],
        scheduler: Callable[[Optimizer], Any] | None = None,
        temperature: float = 0.5,
    ):
        super().__init__(model, optimizer, scheduler)
        if temperature <= 0:
            raise ValueError(f"temperature={temperature} must be above 0; SimCLR takes 0.1 to 0.5")
        check_augment(augment)
        self.augment, self.temperature = augment, temperature

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z = embedded_views(self, batch["x"], self.augment)  # (2, B, d)
        every, first = over_ranks(self, z)
        loss, acc = nt_xent(z, every, first, self.temperature)
        return {"loss": loss, "acc": acc}


class Triplet(Task):
    """An anchor is nearer to its positives than to any negative, by a margin (Schroff et al. 2015, FaceNet, eq. 2).

    Reads `x` (B, ...) and, with positives="labels", `y` (B,). Distances are squared, of unit vectors. As in `SimCLR`,
    each rank's anchors meet the views of the global batch. `acc` is how often what is nearest to an anchor is positive.

    Args:
        margin: by how much.
        mining: which triplets count. "hard": of each anchor, its farthest positive and its nearest negative (Hermans et
            al. 2017, eq. 5). "semi_hard": of each anchor and positive, the nearest negative that is farther than the
            positive, or the farthest where none is (Schroff et al. 2015, section 3.2).
        positives: "views", the other view of the same sample, or "labels", all views of the same class.
        augment: as in `SimCLR`.

    Raises:
        ValueError: margin is not above 0, or there is nothing to make views with.
    """

    needs = ("whole_batch",)

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        augment: dict[str, Augmentation],
        scheduler: Callable[[Optimizer], Any] | None = None,
        margin: float = 0.2,
        mining: Literal["hard", "semi_hard"] = "hard",
        positives: Literal["views", "labels"] = "views",
    ):
        super().__init__(model, optimizer, scheduler)
        if margin <= 0:
            raise ValueError(f"margin={margin} must be above 0: without one, all embeddings may be equal")
        check_augment(augment)
        self.augment, self.margin, self.mining, self.positives = augment, margin, mining, positives

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        z = embedded_views(self, batch["x"], self.augment)  # (2, B, d)
        every, first = over_ranks(self, z)
        if self.positives == "labels":
            ids, _ = over_ranks(self, batch["y"].expand(2, -1))
            ids = ids[0]  # (all samples,)
        else:
            ids = torch.arange(every.shape[1], device=z.device)
        loss, acc = triplet_loss(z, every, ids, first, self.margin, self.mining)
        return {"loss": loss, "acc": acc}


def check_augment(augment: dict[str, Augmentation]) -> None:
    """Raises ValueError: there are no changes, so that all views of a sample would be equal."""
    if not augment:
        raise ValueError("task.augment is empty: views of a sample differ by it; add changes of data/augment.py")


def two_views(x: Tensor, augment: dict[str, Augmentation], noise: Noise) -> Tensor:
    """(2, B, ...): x changed twice, each time by draws of its own."""
    views = [x, x]
    for view in (0, 1):
        for name, change in augment.items():
            views[view] = change(views[view], noise, f"view{view}/{name}")
    return torch.stack(views)


def embedded_views(task: Task, x: Tensor, augment: dict[str, Augmentation]) -> Tensor:
    """(2, B, d): unit vectors of two views of x, which the model sees in one batch."""
    z = task.model(two_views(x, augment, task.noise).flatten(0, 1)).float()
    return F.normalize(z, dim=1).unflatten(0, (2, -1))


def over_ranks(task: Task, z: Tensor) -> tuple[Tensor, int]:
    """z (2, B, ...) of the samples of all ranks, (2, ranks * B, ...), and which of these is this rank's first.

    In an evaluation, whose batches depend on the number of ranks, only this rank's own.
    """
    if not task.model.training:
        return z, 0
    strategy = task.trainer.strategy if task._trainer is not None else None
    every, place = gather(z, getattr(strategy, "tensor_parallel_size", 1))  # (ranks, 2, B, ...)
    return every.transpose(0, 1).flatten(1, 2), place * z.shape[1]


def nt_xent(z: Tensor, every: Tensor, first: int, temperature: float) -> tuple[Tensor, Tensor]:
    """-log of exp(s(i, j)/t) / Σ_k≠i exp(s(i, k)/t) for the two views i and j of a sample (Chen et al. 2020, eq. 1).

    The mean over z (2, B, d), the unit vectors of views, which are the samples from `first` on of every (2, N, d); and
    the share of them whose other view is the nearest.
    """
    own = _places(z, every, first)  # (2, B)
    scores = _cosines(z, every) / temperature  # (2B, 2N)
    scores = scores.scatter(1, own.reshape(-1, 1), -math.inf)
    other = own.flip(0).flatten()
    return F.cross_entropy(scores, other), (scores.argmax(1) == other).float().mean()


def triplet_loss(
    z: Tensor, every: Tensor, ids: Tensor, first: int, margin: float, mining: Literal["hard", "semi_hard"]
) -> tuple[Tensor, Tensor]:
    """max(0, d(a, p) - d(a, n) + margin) of the triplets that `mining` chooses; see `nt_xent` for z, every and first.

    ids (N,): samples of one id are positives of each other, as are the two views of a sample. With several positives,
    the mean over an anchor's, so that anchors weigh the same.
    """
    own = _places(z, every, first).flatten()  # (2B,)
    of_views = ids.repeat(2)  # (2N,)
    same = of_views[own][:, None] == of_views  # (2B, 2N)
    distance = 2 - 2 * _cosines(z, every)  # (2B, 2N)
    positive = same.scatter(1, own[:, None], False)
    to_negative = distance.masked_fill(same, math.inf)
    nearest = distance.scatter(1, own[:, None], math.inf).argmin(1)
    acc = positive.gather(1, nearest[:, None]).float().mean()
    if mining == "hard":
        farthest_positive = distance.masked_fill(~positive, -math.inf).amax(1)
        return (farthest_positive - to_negative.amin(1) + margin).relu().mean(), acc
    ordered = to_negative.sort(1).values  # (2B, 2N), the negatives first
    num_negatives = (~same).sum(1, keepdim=True)
    farther = torch.searchsorted(ordered.detach(), distance.detach(), right=True)  # the first that is, for each place
    chosen = ordered.gather(1, farther.minimum((num_negatives - 1).clamp(min=0)))  # (2B, 2N)
    losses = torch.where(positive, (distance - chosen + margin).relu(), 0.0)
    return (losses.sum(1) / positive.sum(1)).mean(), acc


def _cosines(z: Tensor, every: Tensor) -> Tensor:
    """(2B, 2N) in the precision of the unit vectors: in bf16, near ones would have one distance."""
    with without_autocast(z):
        return z.flatten(0, 1) @ every.flatten(0, 1).T


def _places(z: Tensor, every: Tensor, first: int) -> Tensor:
    """(2, B): where in every (2, N, d), flattened to 2N views, those of z (2, B, d) stand."""
    samples = torch.arange(z.shape[1], device=z.device) + first
    return torch.stack((samples, samples + every.shape[1]))
