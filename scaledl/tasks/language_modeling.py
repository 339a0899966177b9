"""Next-token prediction, and writing by it."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class LanguageModeling(Task):
    """Cross entropy of the next token: `input_ids` (B, T), `labels` (B, T) already shifted, in nats a token.

    Where a batch says what `begins` (B,), each of its samples goes on from the state that the model had at the end of
    the batch before, without gradient: truncated back-propagation through time.

    chunk_tokens: of a model with a `loss` of its own, which never holds all logits; see `linear_cross_entropy`.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        chunk_tokens: int | None = None,
    ):
        super().__init__(model, optimizer, scheduler)
        self.chunk_tokens = chunk_tokens
        self._states: list[Any] = []  # of the streams of each micro-batch of a step
        self._micro_batch = 0

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        context = {"document_ids": batch["document_ids"]} if "document_ids" in batch else {}
        if "begins" in batch:
            context["cache"] = self._carried_into(batch)
        elif hasattr(self.model, "loss"):
            labels, chunk = batch["labels"], self.chunk_tokens
            return {"loss": self.model.loss(batch["input_ids"], labels, chunk_tokens=chunk, **context)}  # type: ignore[operator]
        logits = self.model(batch["input_ids"], **context)  # (B, T, V)
        return {"loss": F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())}

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not getattr(data.split("train"), "shuffled", True):
            self._states = [
                self.model.make_cache(data.micro_batch_size, 1)  # type: ignore[operator]
                for _ in range(data.accumulation)
            ]

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._micro_batch = batch_idx % self.trainer.accumulate_grad_batches

    def carried(self) -> dict[str, list[tuple[int, Tensor]]]:
        """States (depth, B, dim), by name, each with the number of its first stream among those of all ranks."""
        found: dict[str, list[tuple[int, Tensor]]] = {}
        for number, state in enumerate(self._states):
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            first = (data.rank * len(self._states) + number) * data.micro_batch_size
            for index, tensor in enumerate(state.tensors):
                found.setdefault(f"state_{index}", []).append((first, tensor))
        return found

    def _carried_into(self, batch: dict[str, Tensor]) -> Any:
        if not getattr(self.model, "carries_state", False):
            raise ValueError(
                f"data.order=streams is for models that carry a state, and {type(self.model).__name__} has none; take "
                "data.order=shuffled or a recurrent model"
            )
        if not self._states:  # outside a training: a batch alone
            return self.model.make_cache(len(batch["input_ids"]), 1)  # type: ignore[operator]
        state = self._states[self._micro_batch]
        state.tensors = tuple(t.masked_fill(batch["begins"][:, None], 0) for t in state.tensors)
        return state

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
