"""Recurrent networks: a state that is carried from step to step, in the plain, LSTM and GRU cells."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CellName = Literal["rnn", "lstm", "gru"]
Pooling = Literal["last", "mean", "max", "attention"]

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
PAD_ID = 0


class RecurrentState:
    """What a language model remembers of `length` steps; `tensors` are (depth, B, dim) each, two for an LSTM."""

    def __init__(self, cell: CellName, depth: int, batch_size: int, dim: int, device: torch.device | None = None):
        self.tensors = tuple(torch.zeros(depth, batch_size, dim, device=device) for _ in range(1 + (cell == "lstm")))
        self.length = 0


class RecurrentLM(nn.Module):
    """Language model p(x) = ∏ p(x_t | h_t), h_t = cell(x_t, h_{t-1}) (Mikolov et al. 2010; LSTM: Graves 2013).

    Args:
        cell: "rnn" with tanh (Elman 1990), "lstm" (Hochreiter & Schmidhuber 1997) or "gru" (Cho et al. 2014).
        depth: cells on top of each other.
        dropout: of the embeddings, between the cells and before the logits (Zaremba et al. 2014).
        tie_embeddings: logits are products with the token embedding (Press & Wolf 2017).
    """

    block_types = ()
    carries_state = True
    max_seq_len = 2**31  # a state has no window

    def __init__(
        self,
        vocab_size: int,
        cell: CellName = "lstm",
        dim: int = 128,
        depth: int = 1,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.cell, self.depth, self.num_features = cell, depth, dim
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.recurrent = CELLS[cell](dim, dim, depth, batch_first=True, dropout=dropout if depth > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.head = None if tie_embeddings else nn.Linear(dim, vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.token_embedding.weight, std=self.num_features**-0.5)

    def forward(self, input_ids: Tensor, *, cache: RecurrentState | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of input_ids (B, T); see `forward_features`."""
        features = self.forward_features(input_ids, cache=cache)
        return F.linear(features, self.token_embedding.weight) if self.head is None else self.head(features)

    def forward_features(self, input_ids: Tensor, *, cache: RecurrentState | None = None) -> Tensor:
        """States (B, T, dim) of the last cell.

        cache: of `make_cache`; the steps begin from it, and it holds their last state afterwards, without gradient:
        training that passes it on is truncated back-propagation through time (Williams & Peng 1990).
        """
        x = self.dropout(self.token_embedding(input_ids))  # (B, T, dim)
        if cache is None:
            return self.dropout(self.recurrent(x)[0])
        before = tuple(tensor.to(x.dtype) for tensor in cache.tensors)
        out, after = self.recurrent(x, before if self.cell == "lstm" else before[0])
        after = after if self.cell == "lstm" else (after,)
        cache.tensors = tuple(new.detach().to(old.dtype) for new, old in zip(after, cache.tensors, strict=True))
        cache.length += input_ids.shape[1]
        return self.dropout(out)

    def make_cache(self, batch_size: int, max_len: int) -> RecurrentState:
        """The state before the first token."""
        device = self.token_embedding.weight.device
        return RecurrentState(self.cell, self.depth, batch_size, self.num_features, device)


class AttentionPooling(nn.Module):
    """A weighted mean over steps, the weights a softmax of scores v·tanh(W h) (Yang et al. 2016, eq. 5 to 7)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, h: Tensor, there: Tensor | None = None) -> Tensor:
        """h (B, T, dim) -> (B, dim); `there` (B, T) bool: steps that count."""
        return (self.weights(h, there)[..., None] * h).sum(1)

    def weights(self, h: Tensor, there: Tensor | None = None) -> Tensor:
        """(B, T), with the sum 1 over steps."""
        scores = self.score(self.hidden(h).tanh()).squeeze(-1)  # (B, T)
        if there is not None:
            scores = scores.masked_fill(~there, -torch.inf)
        return scores.float().softmax(1).type_as(h)


class Recurrent(nn.Module):
    """Reads a sequence and answers once: classification of texts, forecasting of series.

    Args:
        vocab_size: of token ids x (B, T), padded behind with id 0; or
        in_dim: of values x (B, T, in_dim).
        bidirectional: a second chain of cells reads from the end (Schuster & Paliwal 1997).
        pooling: what is made of the states of the last cell: "last" takes the one after the last step (of each
            direction), "mean" and "max" go over steps, "attention" weighs them.

    Raises:
        ValueError: if not just one of vocab_size and in_dim is given.
    """

    block_types = ()

    def __init__(
        self,
        out_dim: int,
        cell: CellName = "lstm",
        dim: int = 128,
        depth: int = 1,
        vocab_size: int | None = None,
        in_dim: int | None = None,
        bidirectional: bool = False,
        pooling: Pooling = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if (vocab_size is None) == (in_dim is None):
            raise ValueError(
                f"vocab_size={vocab_size} and in_dim={in_dim}: give the one that the data has, ids or values, and "
                "leave the other null"
            )
        self.pooling_name, self.bidirectional = pooling, bidirectional
        self.num_features = dim * (1 + bidirectional)
        self.token_embedding = None if vocab_size is None else nn.Embedding(vocab_size, dim)
        self.recurrent = CELLS[cell](
            in_dim or dim, dim, depth, batch_first=True, bidirectional=bidirectional, dropout=dropout * (depth > 1)
        )
        self.pooling = AttentionPooling(self.num_features) if pooling == "attention" else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(self.num_features, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.token_embedding is not None:
            nn.init.normal_(self.token_embedding.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, out_dim) of x (B, T) int64 or (B, T, in_dim)."""
        return self.out(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, num_features)."""
        if self.token_embedding is None:
            return self._pooled(self.recurrent(x)[0], None)
        there = x != PAD_ID  # (B, T)
        there[:, 0] = True  # an empty text is one padding token
        embedded = self.dropout(self.token_embedding(x))  # (B, T, dim)
        if not self.bidirectional:  # padding lies behind all that is read
            return self._pooled(self.recurrent(embedded)[0], there)
        lengths = there.sum(1).cpu()  # where cuDNN wants them
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        out = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self._pooled(out, there)

    def _pooled(self, h: Tensor, there: Tensor | None) -> Tensor:
        """h (B, T, num_features) -> (B, num_features)."""
        if self.pooling is not None:
            return self.pooling(h, there)
        if self.pooling_name == "last":
            last = h.shape[1] - 1 if there is None else there.sum(1) - 1
            end = h[:, -1] if there is None else h[torch.arange(len(h), device=h.device), last]
            if not self.bidirectional:
                return end
            half = self.num_features // 2
            return torch.cat((end[:, :half], h[:, 0, half:]), 1)  # the backward chain ends at the first step
        if self.pooling_name == "max":
            return (h if there is None else h.masked_fill(~there[..., None], -torch.inf)).amax(1)
        if there is None:
            return h.mean(1)
        return (h * there[..., None]).sum(1) / there.sum(1, keepdim=True)
