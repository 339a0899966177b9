"""Sequence to sequence: teacher forcing, and the search for the likeliest target."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed import group
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class Seq2Seq(Task):
    """Cross entropy of the next target token: `src_ids` (B, S), `tgt_ids` (B, T), `labels` (B, T) already shifted.

    Labels of -100 count nowhere. Metrics: `loss` in nats a token, `acc`, the share of tokens that are likeliest.

    Args:
        label_smoothing: in training, the share of the target that is spread over all words (Szegedy et al. 2016);
            evaluations tell the plain loss.
        bos_id, eos_id: begin and end of a target.

    Raises:
        ValueError: label_smoothing is no share.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        label_smoothing: float = 0.0,
        bos_id: int = 2,
        eos_id: int = 3,
    ):
        super().__init__(model, optimizer, scheduler)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1); 0 leaves the targets as they are")
        self.label_smoothing, self.bos_id, self.eos_id = label_smoothing, bos_id, eos_id

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model(batch["src_ids"], batch["tgt_ids"]).flatten(0, 1).float()  # (B·T, V)
        labels = batch["labels"].flatten()
        counts = labels >= 0
        smoothing = self.label_smoothing if self.training else 0.0
        right = (logits.argmax(1) == labels).sum() / counts.sum()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=smoothing), "acc": right}

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] >= 0).sum()

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        return {**means, "perplexity": math.exp(min(means["loss"], 700.0))}

    @torch.no_grad()
    def translate(
        self, src_ids: Tensor, max_len: int, *, beam_size: int = 1, length_penalty: float = 0.6
    ) -> tuple[list[list[int]], Tensor]:
        """The best target that beam search finds for each of src_ids (B, S), without begin and end; and its score (B,).

        The score is log p(y | x) / ((5 + |y|) / 6)^length_penalty, the end counted (Wu et al. 2016, eq. 14). A sentence
        is done when beam_size targets have ended, or none that goes on can become better than the best of them. One
        beam is greedy search; with more, what greedy search finds competes too, so that they are never worse. Ranks
        call it together, each with sentences of its own.

        Args:
            max_len: tokens of a target with its end, on all ranks; a longer one is cut.

        Raises:
            ValueError: a setting is out of its range.
        """
        if beam_size < 1 or max_len < 1 or length_penalty < 0:
            raise ValueError(
                f"beam_size={beam_size} and max_len={max_len} must be at least 1, length_penalty={length_penalty} at "
                "least 0"
            )
        found, best = self._search(src_ids, max_len, 1, length_penalty)
        if beam_size > 1:
            wider, score = self._search(src_ids, max_len, beam_size, length_penalty)
            whole, others = ((targets == self.eos_id).any(1) for targets in (found, wider))
            better = (others & ~whole) | ((others == whole) & (score > best))  # a cut target has the score of a part
            found, best = torch.where(better[:, None], wider, found), torch.where(better, score, best)
        ids = found.tolist()
        return [row[: row.index(self.eos_id)] if self.eos_id in row else row for row in ids], best

    def _search(self, src_ids: Tensor, max_len: int, beam_size: int, length_penalty: float) -> tuple[Tensor, Tensor]:
        """Targets (B, max_len), filled up with ends, and their scores (B,)."""
        num_sentences, device = len(src_ids), src_ids.device
        best = torch.full((num_sentences,), -math.inf, device=device)
        found = torch.full((num_sentences, max_len), self.eos_id, device=device)
        ended = torch.zeros(num_sentences, dtype=torch.int64, device=device)
        going = torch.arange(num_sentences, device=device)  # (n,), sentences that are not done
        tokens = torch.full((num_sentences, 1, 1), self.bos_id, device=device)  # (n, beams, length)
        scores = torch.zeros(num_sentences, 1, device=device)  # (n, beams)
        cache = self.model.make_cache(num_sentences, max_len)  # type: ignore[operator]
        for length in range(1, max_len + 1):
            last = tokens[:, :, -1].reshape(-1, 1)
            logits = self.model(src_ids, last, cache=cache)[:, -1].float()  # (n·beams, V)
            if len(going):
                beams, vocab_size = scores.shape[1], logits.shape[1]
                totals = scores[:, :, None] + logits.log_softmax(1).unflatten(0, scores.shape)  # (n, beams, V)
                # Each beam can end once: among beam_size + beams candidates, beam_size go on.
                size = min(beam_size + beams, beams * vocab_size)
                totals, chosen = totals.flatten(1).topk(size)  # (n, size)
                beam, word = chosen // vocab_size, chosen % vocab_size
                extended = torch.cat((tokens.gather(1, beam[:, :, None].expand(-1, -1, length)), word[..., None]), 2)
                ends = word == self.eos_id

                penalty = ((5 + length) / 6) ** length_penalty
                complete = totals.masked_fill(~ends, -math.inf)[:, :beam_size] / penalty
                ended[going] += complete.isfinite().sum(1)
                self._keep(complete, extended, going, best, found)

                scores, order = totals.masked_fill(ends, -math.inf).topk(min(beam_size, size - beams))
                tokens = extended.gather(1, order[:, :, None].expand(-1, -1, length + 1))
                if length == max_len:
                    unfinished = scores.masked_fill(best[going, None].isfinite(), -math.inf) / penalty
                    self._keep(unfinished, tokens, going, best, found)
                bound = scores[:, 0] / ((5 + max_len) / 6) ** length_penalty
                goes_on = (ended[going] < beam_size) & (bound > best[going])
                rows = torch.arange(len(going), device=device)[:, None] * beams + beam.gather(1, order)  # (n, beams)
                going, scores, tokens, rows = (t[goes_on] for t in (going, scores, tokens, rows))
                if not len(going):
                    rows = torch.zeros(1, 1, dtype=torch.int64, device=device)  # for the sake of other ranks
                    tokens = extended[:1, :1]
                cache.select(rows.flatten())
                src_ids = src_ids[rows.flatten()]
            if not _anywhere(len(going) > 0):
                break
        return found, best

    @staticmethod
    def _keep(scores: Tensor, tokens: Tensor, going: Tensor, best: Tensor, found: Tensor) -> None:
        """Note hypotheses (n, k, length + 1) of the sentences `going` that are better than the best so far."""
        top, which = scores.max(1)
        better = top > best[going]
        sentences = going[better]
        best[sentences] = top[better]
        found[sentences, : tokens.shape[2] - 1] = tokens[better, which[better], 1:]


def _anywhere(here: bool) -> bool:
    """Whether it is so on any rank: sharded models compute together, so that none may stop before the others."""
    if group.world_size() == 1:
        return here
    flag = torch.tensor(int(here))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)
