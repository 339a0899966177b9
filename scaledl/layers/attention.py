"""Softmax attention: by dot products (self or cross, grouped heads, masks, caches for generation), and additive."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.linear import Linear
from scaledl.layers.position import RotaryEmbedding


class ContextCache:
    """Keys and values of the context that one cross-attention layer reads, computed with the first tokens."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]


class LayerCache:
    """Keys and values of the `length` tokens that one attention layer has seen. Written in place: inference only.

    The memory for max_len tokens is taken once, with the first tokens: only they know the dtype under mixed precision
    and the heads that this rank holds under tensor parallelism.
    """

    def __init__(self, batch_size: int, max_len: int) -> None:
        self.batch_size = batch_size
        self.max_len = max_len
        self.length = 0
        self.context = ContextCache()

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys and values of T new tokens; returns those of all tokens, (B, num_kv_heads, length, head_dim).

        Raises:
            ValueError: if the new tokens do not fit.
        """
        end = self.length + k.shape[2]
        if k.shape[0] != self.batch_size or end > self.max_len:
            raise ValueError(
                f"{k.shape[0]} sequences of {end} tokens do not fit into a cache for {self.batch_size} sequences of "
                f"max_len={self.max_len}: make a cache of the size you need"
            )
        if self.length == 0:
            self.keys = k.new_empty(self.batch_size, k.shape[1], self.max_len, k.shape[3])
            self.values = v.new_empty(self.keys.shape)
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep the sequences `rows` (n,) in that order; one that comes twice is copied (beam search)."""
        self.batch_size = len(rows)
        self.context.select(rows)
        if self.length:
            old = self.keys, self.values
            self.keys, self.values = (t.new_empty(self.batch_size, *t.shape[1:]) for t in old)
            self.keys[:, :, : self.length] = old[0][rows, :, : self.length]
            self.values[:, :, : self.length] = old[1][rows, :, : self.length]


class KVCache:
    """What a model's attention layers remember of `length` tokens, so that each token is computed once."""

    def __init__(self, depth: int, batch_size: int, max_len: int) -> None:
        self.layers = [LayerCache(batch_size, max_len) for _ in range(depth)]

    @property
    def length(self) -> int:
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)


def causal_mask(
    query_positions: Tensor, key_positions: Tensor, *, window: int | None = None, document_ids: Tensor | None = None
) -> Tensor:
    """True where query i may attend to key j: i - window < j <= i (Longformer, arXiv:2004.05150), same document.

    Shapes: positions (T,) and (S,); document_ids (B, T), then T = S. Returns (T, S), or (B, 1, T, T) with documents.
    """
    distance = query_positions[:, None] - key_positions[None, :]  # (T, S)
    mask = distance >= 0
    if window is not None:
        mask = mask & (distance < window)
    if document_ids is not None:
        mask = mask & (document_ids[:, None, :, None] == document_ids[:, None, None, :])  # (B, 1, T, T)
    return mask


def added_to_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a bool mask is True, else -inf: what attention would make of the mask, and keep, in each block anew."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


class Attention(nn.Module):
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped queries (Ainslie et al. 2023).

    num_kv_heads < num_heads lets groups of query heads share one key/value head. qk_norm is an RMSNorm over head_dim
    on queries and keys (Qwen3). A rope_base makes the positions rotary. N(0, init_std) fills q, k, v;
    N(0, out_init_std) the projection back into the residual stream (default: init_std).

    Raises:
        ValueError: if num_heads does not divide dim and no head_dim is given, or num_kv_heads not num_heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        rope_base: float | None = None,
        rope_scaling: dict[str, float] | None = None,
        init_std: float = 0.02,
        out_init_std: float | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim is None and dim % num_heads:
            raise ValueError(
                f"dim={dim} is not divisible by num_heads={num_heads}: change one of them, or set head_dim yourself"
            )
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads={num_heads} is not divisible by num_kv_heads={num_kv_heads}: every key/value head serves "
                "the same number of query heads, choose a divisor"
            )
        self.head_dim = dim // num_heads if head_dim is None else head_dim
        self.dropout = dropout
        self.grouped = num_kv_heads != num_heads
        self.init_std = init_std
        self.out_init_std = init_std if out_init_std is None else out_init_std
        # Not fused: one q|k|v matmul gained 2 % of this layer's time (CPU, dim 128), and three serve cross attention
        # with the same code and shard by rows, head by head, under tensor parallelism.
        self.q = Linear(dim, num_heads * self.head_dim, bias=bias)
        self.k = Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.v = Linear(dim, num_kv_heads * self.head_dim, bias=bias)
        self.out = Linear(num_heads * self.head_dim, dim, bias=bias)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=norm_eps) if qk_norm else None
        self.k_norm = nn.RMSNorm(self.head_dim, eps=norm_eps) if qk_norm else None
        self.rope = None if rope_base is None else RotaryEmbedding(self.head_dim, rope_base, rope_scaling)
        self.out_dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.q, self.k, self.v, self.out):
            nn.init.normal_(linear.weight, std=self.out_init_std if linear is self.out else self.init_std)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        positions: Tensor | None = None,
        cache: LayerCache | ContextCache | None = None,
    ) -> Tensor:
        """Attends from x (B, T, dim) to context (B, S, dim), or to x itself.

        mask: bool, True = attend, or `added_to_scores`, broadcastable to (B, num_heads, T, S); it is the whole rule, so
        never with is_causal.
        positions: (T,) integers, needed with rotary positions. cache: x then holds the tokens after the cached ones; a
        ContextCache takes the context's keys and values from the first call, and later ones need no context.
        """
        assert mask is None or not is_causal, "a mask is the whole rule: put causality into it"
        q, k, v = self._heads(x, context, positions, cache)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=self.grouped)
        return self.out_dropout(self.out(y.transpose(1, 2).flatten(2)))  # (B, T, dim)

    def attention_map(
        self,
        x: Tensor,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
        positions: Tensor | None = None,
        cache: None = None,
    ) -> Tensor:
        """The weights (B, num_heads, T, S) by which `forward` mixes values, for those who want to see them."""
        q, k, _ = self._heads(x, context, positions, cache)
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT / math.sqrt(self.head_dim)
        if is_causal:
            mask = scores.new_ones(scores.shape[2:], dtype=torch.bool).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        return scores.softmax(-1)

    def _heads(
        self, x: Tensor, context: Tensor | None, positions: Tensor | None, cache: LayerCache | ContextCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, num_heads, T, head_dim), keys and values (B, num_kv_heads, S, head_dim)."""
        # Heads are counted by the tensor, not by num_heads: a tensor-parallel rank holds its share of them.
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, num_heads, T, head_dim)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if isinstance(cache, ContextCache) and cache.keys is not None and cache.values is not None:
            k, v = cache.keys, cache.values
        else:
            source = x if context is None else context
            k = self.k(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, num_kv_heads, S, head_dim)
            v = self.v(source).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, num_kv_heads, S, head_dim)
            if self.k_norm is not None:
                k = self.k_norm(k)
            if self.rope is not None:
                assert positions is not None, "rotary positions need the positions of the tokens"
                q, k = self.rope(q, k, positions)
            if isinstance(cache, ContextCache):
                cache.keys, cache.values = k, v
            elif cache is not None:
                k, v = cache.append(k, v)
        return q, k, v


class AdditiveAttention(nn.Module):
    """Weights are a softmax of v·tanh(W q + U k) over the keys k (Bahdanau et al. 2015, arXiv:1409.0473, A.1.2).

    Args:
        hidden_dim: of the layer that compares a query with a key.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key = nn.Linear(key_dim, hidden_dim)
        self.score = nn.Linear(hidden_dim, 1, bias=False)

    def forward(
        self, query: Tensor, context: Tensor, keys: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean (B, key_dim) of context (B, S, key_dim) under the weights, and these (B, S).

        query: (B, query_dim). keys: self.key(context), the same for every query. mask: (B, S), True = attend.
        """
        scores = self.score(torch.tanh(self.query(query)[:, None] + keys)).squeeze(-1)  # (B, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = scores.float().softmax(-1).type_as(context)
        return torch.bmm(weights[:, None], context).squeeze(1), weights
