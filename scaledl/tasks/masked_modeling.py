"""Tokens are hidden, and found again from what stands around them."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.linear_cross_entropy import IGNORED
from scaledl.tasks.base import Task


class MaskedModeling(Task):
    """Cross entropy of hidden tokens, in nats, and the share `acc` of them found (Devlin et al. 2019, section 3.1).

    Reads `input_ids` (B, T) and `labels` (B, T), which only tell where there is text: none is negative there. Of a
    sample's n tokens `num_masked(n)` are chosen; of these 80 % become mask_id, 10 % a random token, 10 % stay.

    Args:
        vocab_size: random tokens are below it.
        mask_id: what stands for a hidden token.
        mask_ratio: share of the tokens that are chosen.

    Raises:
        ValueError: if there is no mask_id, or mask_ratio is not in (0, 1).
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        vocab_size: int,
        mask_id: int | None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        mask_ratio: float = 0.15,
    ):
        super().__init__(model, optimizer, scheduler)
        if mask_id is None:
            raise ValueError(
                "task.mask_id is null: the tokenizer has no mask; take data/tokenizer=bpe_masked, "
                "or a data.vocab_size above the tokenizer's and the last id as data.mask_id"
            )
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie in (0, 1); BERT hides 0.15")
        self.vocab_size, self.mask_id, self.mask_ratio = vocab_size, mask_id, mask_ratio

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        input_ids, chosen, targets = self.hide(batch)
        logits = self.model(input_ids, predict_at=chosen).float()  # (B, M, V)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        found = (logits.argmax(2) == targets).sum() / (targets != IGNORED).sum()
        return {"loss": loss, "acc": found}

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        return self.num_masked((batch["labels"] >= 0).sum(1)).sum()

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}

    def num_masked(self, n: Tensor) -> Tensor:
        """How many of n tokens are chosen: round(mask_ratio * n), but one at least."""
        return (n.double() * self.mask_ratio).round().long().clamp(min=1).minimum(n)

    def hide(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens with holes (B, T), positions (B, M) of those chosen, and which tokens stood there (B, M).

        M is that of a sample without padding; where a sample has fewer, its last targets are IGNORED.
        """
        ids, real = batch["input_ids"], batch["labels"] >= 0  # (B, T)
        length = ids.shape[1]
        most = max(1, round(self.mask_ratio * length))
        order = self.noise.uniform("masked", length).masked_fill(~real, 2.0)
        chosen = order.argsort(dim=1, stable=True)[:, :most]  # (B, M)
        kept = torch.arange(most, device=ids.device) >= self.num_masked(real.sum(1))[:, None]  # (B, M): only fill up
        tokens = ids.take_along_dim(chosen, dim=1)
        kind = self.noise.uniform("kind", most)
        anything = self.noise.integers("token", self.vocab_size, most)
        hidden = torch.where(kind < 0.8, self.mask_id, torch.where(kind < 0.9, anything, tokens))
        input_ids = ids.scatter(1, chosen, torch.where(kept, tokens, hidden))
        return input_ids, chosen, tokens.masked_fill(kept, IGNORED)
