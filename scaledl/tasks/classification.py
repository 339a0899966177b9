"""Which of the classes: any model that gives a score for each."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task

TOP5_FROM = 20  # classes; with fewer, to be among the five says little


class Classification(Task):
    """One of num_classes for each sample: `x` (B, ...), `y` (B,) int64; metrics `loss` and `acc`, the share right.

    With many classes also `acc5`, the share whose class is among the five likeliest. Of mixed samples, the class is the
    one with the larger share.

    Args:
        loss: "cross_entropy" in nats, or "perceptron" (see `perceptron_loss`), with which SGD is Rosenblatt's rule.
        label_smoothing: share of the target that cross entropy spreads over all classes (Szegedy et al. 2016).
        augment: changes of x in training (data/augment.py), by a name that keys their noise, in their order.
        mixup: blend two training samples and their targets, by shares from Beta(mixup, mixup) (Zhang et al. 2018).
        cutmix: put a rectangle of one image into another, whose area is such a share (Yun et al. 2019). With both, each
            sample gets one of them by chance. Partners are neighbours in the training stream, whose order is random.

    Raises:
        ValueError: if settings contradict each other, or the model has not num_classes outputs.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        num_classes: int,
        scheduler: Callable[[Optimizer], Any] | None = None,
        loss: Literal["cross_entropy", "perceptron"] = "cross_entropy",
        label_smoothing: float = 0.0,
        augment: dict[str, Callable[[Tensor, Noise, str], Tensor]] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        super().__init__(model, optimizer, scheduler)
        if num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: a choice needs at least 2; give the number of classes of the data"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1); 0 leaves the targets as they are")
        for name, value in (("label_smoothing", label_smoothing), ("mixup", mixup), ("cutmix", cutmix)):
            if value < 0:
                raise ValueError(f"{name}={value} must be at least 0, which leaves it out")
            if value and loss != "cross_entropy":
                raise ValueError(f"{name}={value} is of cross_entropy; set it to 0 with loss={loss}")
        self.num_classes, self.loss, self.label_smoothing = num_classes, loss, label_smoothing
        self.augment, self.mixup, self.cutmix = augment or {}, mixup, cutmix

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, y = batch["x"], batch["y"]
        targets = y
        if self.model.training:
            for name, change in self.augment.items():
                x = change(x, self.noise, f"augment/{name}")
            if self.mixup or self.cutmix:
                x, share = mixed(x, self.noise, self.mixup, self.cutmix)
                targets = F.one_hot(y, self.num_classes) * share[:, None]
                targets += F.one_hot(partners(y), self.num_classes) * (1 - share)[:, None]  # (B, num_classes)
                y = torch.where(share >= 0.5, y, partners(y))
        logits = self.model(x).float()  # (B, num_classes)
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"the model gives {tuple(logits.shape[1:])} outputs a sample, but task.num_classes={self.num_classes}: "
                "set model.out_dim to it"
            )
        if self.loss == "perceptron":
            loss = perceptron_loss(logits, y)
        else:
            loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        metrics = {"loss": loss, "acc": (logits.argmax(1) == y).float().mean()}
        if self.num_classes >= TOP5_FROM:
            metrics["acc5"] = (logits.topk(5).indices == y[:, None]).any(1).float().mean()
        return metrics


def perceptron_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of max(0, best wrong score - right score): the perceptron criterion for several classes.

    A tie has the gradient of a mistake, as in Rosenblatt's rule; zero weights would never move otherwise.
    """
    right = logits.gather(1, y[:, None]).squeeze(1)  # (B,)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)  # (B,)
    return torch.where(wrong >= right, wrong - right, 0.0).mean()


def partners(t: Tensor) -> Tensor:
    """Each sample's neighbour, (B, ...): positions 2i and 2i + 1 of the training stream, whatever the ranks.

    Raises:
        ValueError: the batch is odd.
    """
    if len(t) % 2:
        raise ValueError(
            f"mixup and cutmix pair the samples of a micro-batch, but there are {len(t)} of them: make "
            "data.global_batch_size / ranks and data.micro_batch_size even"
        )
    return t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mixed(x: Tensor, noise: Noise, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """x (B, ...) with something of each sample's partner in it, and the share (B,) that is still its own.

    Raises:
        ValueError: x has no fractions to blend, or no rectangles to cut.
    """
    if not x.is_floating_point() or (cutmix and x.ndim != 4):
        raise ValueError(
            f"mixup={mixup} takes numbers and cutmix={cutmix} images (B, C, H, W), but x is {x.dtype} "
            f"{tuple(x.shape)}; set them to 0"
        )
    if mixup:
        own = symmetric_beta(mixup, noise, "mixup").view(-1, *(1 for _ in x.shape[1:]))  # (B, 1, ...)
    if cutmix:
        cut = _rectangles(1 - symmetric_beta(cutmix, noise, "cutmix"), x.shape[2:], noise)  # (B, H, W)
        uncut = (~cut)[:, None].float()
        own = torch.where(noise.bernoulli("which", 0.5, 1, 1, 1), uncut, own) if mixup else uncut
    return (own * x + (1 - own) * partners(x)).to(x.dtype), own.flatten(1).mean(1)


def _rectangles(area: Tensor, shape: torch.Size, noise: Noise) -> Tensor:
    """(B, H, W) bool: the pixels of a rectangle like the image, of this share (B,) of it, around any place in it."""
    half, centre = area.sqrt()[:, None] / 2, noise.uniform("rectangle", 2)  # (B, 1), (B, 2)
    rows, columns = (
        ((torch.arange(side, device=area.device) + 0.5) / side - centre[:, axis : axis + 1]).abs() < half
        for axis, side in enumerate(shape)
    )
    return rows[:, :, None] & columns[:, None, :]


def symmetric_beta(alpha: float, noise: Noise, name: str) -> Tensor:
    """(B,) from Beta(alpha, alpha), by two uniform numbers: Bailey's (1994) t variate, squashed (Devroye 1996)."""
    u, v = noise.uniform(name, 2).unbind(1)
    g, c = u ** (1 / alpha), torch.cos(2 * math.pi * v)
    return (0.5 + 0.5 * c * ((1 - g) / (g + (1 - g) * c**2)).sqrt()).clamp(0, 1)
