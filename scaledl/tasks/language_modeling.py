"""Next-token prediction, and writing by it."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scaledl.tasks.base import Task


class LanguageModeling(Task):
    """Cross entropy of the next token: `input_ids` (B, T), `labels` (B, T) already shifted, in nats a token."""

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        context = {"document_ids": batch["document_ids"]} if "document_ids" in batch else {}
        logits = self.model(batch["input_ids"], **context)  # (B, T, V)
        return {"loss": F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())}

    def weight(self, batch: dict[str, Tensor]) -> Tensor:
        return (batch["labels"] >= 0).sum()

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds perplexity and, where the data knows how many bytes a token stands for, bits per byte."""
        found = {**means, "perplexity": math.exp(min(means["loss"], 700.0))}
        bytes_per_token = getattr(self.eval_dataset, "bytes_per_token", None)
        if bytes_per_token:
            found["bpb"] = means["loss"] / math.log(2) / bytes_per_token
        return found

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: list[int],
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Token ids that continue the prompt, one by one.

        The model's window slides: when it is full, the second half of it is read again as the new context.
        """
        self.model.eval()
        generator = torch.Generator(self.device).manual_seed(seed)
        written = list(prompt_ids)
        window = min(self.model.max_seq_len, len(written) + max_new_tokens)  # type: ignore[type-var]
        cache, pending = None, written
        for _ in range(max_new_tokens):
            if cache is None or cache.length + len(pending) > window:
                cache = self.model.make_cache(1, window)
                pending = written if len(written) <= window else written[-(window + 1) // 2 :]
            ids = torch.tensor([pending], device=self.device)
            logits = self.model(ids, cache=cache)[0, -1].float()  # (V,)
            token = sample_token(logits, temperature, top_k, top_p, generator)
            written.append(token)
            pending = [token]
            yield token


def sample_token(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator | None = None
) -> int:
    """A token id drawn from logits (V,); temperature 0 takes the likeliest, top-p the smallest set of that mass."""
    if temperature == 0:
        return int(logits.argmax())
    logits = logits / temperature
    if top_k is not None and top_k < len(logits):
        kept = logits.topk(top_k)
        logits = torch.full_like(logits, -math.inf).scatter(0, kept.indices, kept.values)
    probabilities = logits.softmax(0)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(0) - ordered >= top_p
        probabilities = probabilities.index_fill(0, order[beyond], 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
