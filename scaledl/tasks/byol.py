"""One view of a sample foretells what a slower copy of the network makes of the other; no negatives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.gradients import local
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task
from scaledl.tasks.contrastive import Augmentation, check_augment, two_views


class BYOL(Task):
    """2 - 2 cos(q(z), z'), over both orders of the views (Grill et al. 2020, Bootstrap Your Own Latent, eq. 2).

    z' comes from the target network, an average of the weights over the steps. It is the one that callbacks.ema keeps,
    sharded as the optimiser's weights are and in checkpoints; for its forward pass its values stand in the model's
    place. Evaluations read the target, too. A mean over samples: micro-batches and ranks change nothing.

    Reads `x` (B, ...). `spread` is the mean standard deviation of the unit vectors z' over the batch, times the square
    root of their dimension: near 1 where they fill the sphere, 0 where all have become one.

    Args:
        augment: changes that make a view of x (data/augment.py), by a name that keys their noise, in their order.

    Raises:
        ValueError: there is nothing to make views with, or, at the start of the training, no callbacks.ema.
    """

    needs = ("average",)

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        augment: dict[str, Augmentation],
        scheduler: Callable[[Optimizer], Any] | None = None,
    ):
        super().__init__(model, optimizer, scheduler)
        check_augment(augment)
        self.augment = augment

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        views = two_views(batch["x"], self.augment, self.noise)  # (2, B, ...)
        with torch.no_grad(), self.target():
            projected = self._unit(self.model(views.flip(0).flatten(0, 1)))  # (2B, d), of the other views
        predicted = self._unit(self.model(views.flatten(0, 1), predict=True))
        loss = 2 - 2 * (predicted * projected).sum(1).mean()
        spread = projected.std(0, correction=0).mean() * projected.shape[1] ** 0.5
        return {"loss": loss, "spread": spread}

    def on_fit_start(self) -> None:
        if self.trainer.strategy.average is None:  # type: ignore[attr-defined]
            raise ValueError("the target network of BYOL is the average of callbacks.ema: add that callback")

    @staticmethod
    def _unit(z: Tensor) -> Tensor:
        return F.normalize(z.float(), dim=1)

    @contextmanager
    def target(self) -> Iterator[None]:
        """With the target's weights in the model; in an evaluation, callbacks.ema has put them there."""
        if not self.model.training or self._trainer is None:
            yield
            return
        strategy: Any = self.trainer.strategy
        masters = [local(master.detach()) for master in strategy.masters()]
        weights = [master.clone() for master in masters]
        _put([local(average) for average in strategy.average], masters, strategy)
        try:
            yield
        finally:
            _put(weights, masters, strategy)


@torch.no_grad()
def _put(values: list[Tensor], masters: list[Tensor], strategy: Any) -> None:
    torch._foreach_copy_(masters, values)
    strategy.refresh()
