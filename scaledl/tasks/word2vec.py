"""Word vectors: those of words that stand near each other are made to fit."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class NegativeSampling(Task):
    """Tells a word's neighbour from random words (Mikolov et al. 2013b, eq. 4), in nats a pair.

    `x` (B,) with neighbours `context` (B,); or, as a test, `analogy` (B, 4), whose metric `analogies` is the share of
    questions a : b = c : ? with d as the word nearest, by its angle, to b - a + c, a, b and c left out.

    Args:
        num_negatives: random words for each pair. One that happens to be the neighbour is not counted.
        power: random words come with the probability of count^power.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        num_negatives: int = 5,
        power: float = 0.75,
    ):
        super().__init__(model, optimizer, scheduler)
        if num_negatives < 1:
            raise ValueError(f"task.num_negatives={num_negatives}: vectors need at least 1 word to be told from")
        self.num_negatives, self.power = num_negatives, power
        self.cumulative = torch.ones(1, dtype=torch.float64)  # (V,) probability of a word or one before it

    def setup(self, stage: str) -> None:
        counts = torch.as_tensor(self.trainer.datamodule.word_counts, dtype=torch.float64)  # type: ignore[attr-defined]
        shares = counts.pow(self.power).where(counts > 0, 0)
        self.cumulative = (shares / shares.sum()).cumsum(0).to(self.device)

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if "analogy" in batch:
            return {"analogies": self.solved(batch["analogy"]).float().mean()}
        x, context = batch["x"], batch["context"][:, None]  # (B,), (B, 1)
        negatives = self.negatives(x.device)  # (B, K)
        scores = self.model(x, torch.cat((context, negatives), 1)).float()  # (B, 1 + K)
        against = F.logsigmoid(-scores[:, 1:]).masked_fill(negatives == context, 0)
        return {"loss": -(F.logsigmoid(scores[:, 0]) + against.sum(1)).mean()}

    def negatives(self, device: torch.device) -> Tensor:
        """Random words (B, num_negatives) int64."""
        uniform = self.noise.uniform("negatives", self.num_negatives, dtype=torch.float64)
        cumulative = self.cumulative.to(device)
        return torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(cumulative) - 1)

    def solved(self, questions: Tensor) -> Tensor:
        """(B,) bool: which of the questions (B, 4) are answered right."""
        words = torch.arange(len(self.cumulative), device=questions.device)
        vectors = F.normalize(self.model(words).float(), dim=1)  # (V, dim)
        a, b, c, d = questions.T
        scores = (vectors[b] - vectors[a] + vectors[c]) @ vectors.T  # (B, V)
        unseen = self.cumulative.diff(prepend=self.cumulative.new_zeros(1)) == 0
        scores = scores.masked_fill(unseen.to(scores.device), -torch.inf).scatter(1, questions[:, :3], -torch.inf)
        return scores.argmax(1) == d
