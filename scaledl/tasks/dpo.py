"""Preferences: of two answers, the better one is to become likelier."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.lora import is_adapted, without_adapters
from scaledl.tasks.base import Task
from scaledl.tasks.language_modeling import LanguageModeling


class DPO(Task):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    `input_ids` and `labels` (B, 2, T), chosen then rejected, labels already shifted and -100 but on the answer. The
    reference is the model that this run begins with: with LoRA the same model without its adapters, else a frozen copy,
    which lies in checkpoints too, so that a resumed run compares with the same. At first the loss is ln 2.

    Metrics: `acc`, how often the chosen answer's reward is higher, `margin`, by how much in the mean, and both rewards.

    Args:
        beta: how far the model may go from the reference: rewards are beta · log(p / p of the reference).
        label_smoothing: the share of pairs taken to be the wrong way round (Mitchell 2023, eq. 3).

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
    ):
        super().__init__(model, optimizer, scheduler)
        if beta <= 0 or not 0 <= label_smoothing < 0.5:
            raise ValueError(f"task.beta={beta} must be above 0 and task.label_smoothing={label_smoothing} in [0, 0.5)")
        self.beta, self.label_smoothing = beta, label_smoothing
        self.reference: nn.Module | None = None

    def configure_model(self) -> None:
        super().configure_model()
        if self.reference is None and not is_adapted(self.model):
            self.reference = self.built().requires_grad_(False)

    generate = LanguageModeling.generate  # a model that has learnt preferences writes as before

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, labels = batch["input_ids"].flatten(0, 1), batch["labels"].flatten(0, 1)  # (2 B, T)
        reference = self.model if self.reference is None else self.reference
        training = self.model.training
        with torch.no_grad(), without_adapters(reference):
            before = log_likelihood(reference.eval()(ids), labels)
        reference.train(training)
        rewards = self.beta * (log_likelihood(self.model(ids), labels) - before)  # (2 B,)
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        margin = chosen - rejected
        smoothing = self.label_smoothing if training else 0.0
        loss = -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)
        return {
            "loss": loss.mean(),
            "acc": (margin > 0).float().mean(),
            "margin": margin.mean(),
            "reward_chosen": chosen.mean(),
            "reward_rejected": rejected.mean(),
        }


def log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """log p (B,) of each sequence's labels (B, T) under logits (B, T, V); labels of -100 count nothing."""
    return -F.cross_entropy(logits.float().mT, labels, reduction="none").sum(1)
