"""Which of the classes: any model that gives a score for each."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class Classification(Task):
    """One of num_classes for each sample: `x` (B, ...), `y` (B,) int64; metrics `loss` and `acc`, the share right.

    Args:
        loss: "cross_entropy" in nats, or "perceptron" (see `perceptron_loss`), with which SGD is Rosenblatt's rule.
        label_smoothing: share of the target that cross entropy spreads over all classes (Szegedy et al. 2016).

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
    ):
        super().__init__(model, optimizer, scheduler)
        if num_classes < 2:
            raise ValueError(
                f"num_classes={num_classes}: a choice needs at least 2; give the number of classes of the data"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1); 0 leaves the targets as they are")
        if label_smoothing and loss != "cross_entropy":
            raise ValueError(f"label_smoothing={label_smoothing} is of cross_entropy; set it to 0 with loss={loss}")
        self.num_classes, self.loss, self.label_smoothing = num_classes, loss, label_smoothing

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, y = self.model(batch["x"]).float(), batch["y"]  # (B, num_classes), (B,)
        if logits.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"the model gives {tuple(logits.shape[1:])} outputs a sample, but task.num_classes={self.num_classes}: "
                "set model.out_dim to it"
            )
        if self.loss == "perceptron":
            loss = perceptron_loss(logits, y)
        else:
            loss = F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return {"loss": loss, "acc": (logits.argmax(1) == y).float().mean()}


def perceptron_loss(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of max(0, best wrong score - right score): the perceptron criterion for several classes.

    A tie has the gradient of a mistake, as in Rosenblatt's rule; zero weights would never move otherwise.
    """
    right = logits.gather(1, y[:, None]).squeeze(1)  # (B,)
    wrong = logits.scatter(1, y[:, None], -torch.inf).amax(1)  # (B,)
    return torch.where(wrong >= right, wrong - right, 0.0).mean()
