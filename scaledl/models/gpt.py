"""Decoder-only transformer: GPT-2, Llama 3 or Qwen3 by its arguments. The blocks are in `scaledl.layers`."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention, KVCache, added_to_scores, causal_mask
from scaledl.layers.feedforward import Activation, FeedForward
from scaledl.layers.linear import Linear
from scaledl.layers.linear_cross_entropy import linear_cross_entropy
from scaledl.layers.lora import LoRALinear
from scaledl.layers.moe import Balance, MixtureOfExperts, Router, Score
from scaledl.layers.norm import NormName, make_norm
from scaledl.layers.precision import product_dtype
from scaledl.layers.transformer import TransformerBlock


class GPT(nn.Module):
    """Autoregressive language model p(x) = ∏ p(x_t | x_<t) (Radford et al. 2019, GPT-2).

    Llama 3 (arXiv:2407.21783) changes the arguments to rmsnorm, rotary, swiglu, no bias, grouped key/value heads;
    Qwen3 (arXiv:2505.09388) adds qk_norm and a head_dim of its own. Initialisation is GPT-2's for all:
    N(0, init_std), biases zero, projections into the residual stream scaled by 1/sqrt(2·depth) so that its variance
    does not grow with depth.

    window: a token attends to itself and the window - 1 tokens before it. tie_embeddings: logits are products with
    the token embedding; there is no head then. rope_base and rope_scaling (see `RotaryEmbedding`) are read by
    position="rotary" only.

    num_experts: instead of one feed-forward layer each block has so many, without biases and hidden_dim wide each, of
    which a token uses experts_per_token (see `MixtureOfExperts`, whose arguments the last ones are); Mixtral and
    Qwen3-MoE are Llama 3 and Qwen3 with it. null = one for all tokens, and none of those arguments is read.

    Raises:
        ValueError: if sizes do not fit (see `Attention`, `RotaryEmbedding`, `MixtureOfExperts`) or window is below 1.
    """

    block_types = (TransformerBlock,)
    entry_points = ("loss",)

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        *,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        hidden_dim: int | None = None,
        norm: NormName = "layernorm",
        norm_eps: float = 1e-5,
        position: Literal["learned", "rotary"] = "learned",
        rope_base: float = 10_000.0,
        rope_scaling: dict[str, float] | None = None,
        activation: Activation = "gelu",
        bias: bool = True,
        qk_norm: bool = False,
        window: int | None = None,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        init_std: float = 0.02,
        num_experts: int | None = None,
        experts_per_token: int = 2,
        num_shared_experts: int = 0,
        router_score: Score = "softmax",
        normalize_router: bool = True,
        balance: Balance = "bias",
        balance_rate: float = 1e-3,
        router_z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise ValueError(f"window={window}: a token attends at least to itself, give 1 or more, or null for all")
        self.max_seq_len = max_seq_len
        self.num_features = dim
        self.window = window
        self.init_std = init_std
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_seq_len, dim) if position == "learned" else None
        self.embedding_dropout = nn.Dropout(dropout)
        out_init_std = init_std / math.sqrt(2 * depth)

        def feedforward() -> nn.Module:
            if num_experts is None:
                return FeedForward(
                    dim,
                    hidden_dim,
                    activation=activation,
                    bias=bias,
                    dropout=dropout,
                    init_std=init_std,
                    out_init_std=out_init_std,
                )
            return MixtureOfExperts(
                dim,
                num_experts,
                experts_per_token,
                hidden_dim,
                num_shared_experts=num_shared_experts,
                activation=activation,
                score=router_score,
                normalize=normalize_router,
                balance=balance,
                balance_rate=balance_rate,
                z_loss=router_z_loss,
                dropout=dropout,
                init_std=init_std,
                out_init_std=out_init_std,
            )

        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                Attention(
                    dim,
                    num_heads,
                    num_kv_heads=num_kv_heads,
                    head_dim=head_dim,
                    bias=bias,
                    dropout=dropout,
                    qk_norm=qk_norm,
                    norm_eps=norm_eps,
                    rope_base=rope_base if position == "rotary" else None,
                    rope_scaling=rope_scaling,
                    init_std=init_std,
                    out_init_std=out_init_std,
                ),
                feedforward(),
                norm=norm,
                norm_eps=norm_eps,
                bias=bias,
            )
            for _ in range(depth)
        )
        self.norm = make_norm(norm, dim, norm_eps, bias)
        # Tied weights are one parameter used twice, not one shared by two modules: `to_empty` would part those.
        self.head = None if tie_embeddings else Linear(dim, vocab_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in (self.token_embedding, self.position_embedding, self.head):
            if module is not None:
                nn.init.normal_(module.weight, std=self.init_std)

    def forward(self, input_ids: Tensor, *, document_ids: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of input_ids (B, T); arguments of `forward_features`."""
        return self.logits(self.forward_features(input_ids, document_ids=document_ids, cache=cache))

    def forward_features(
        self, input_ids: Tensor, *, document_ids: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Features (B, T, dim) after the final norm.

        document_ids: (B, T) integers; tokens attend within equal ids only, positions run on across documents.
        cache: of `make_cache`; input_ids then holds the tokens after the cached ones, which are added to it.

        Raises:
            ValueError: if the sequence is longer than max_seq_len, or document_ids come together with a cache.
        """
        start = 0 if cache is None else cache.length
        end = start + input_ids.shape[1]
        if end > self.max_seq_len:
            raise ValueError(
                f"a sequence of {end} tokens is longer than max_seq_len={self.max_seq_len}: shorten or crop it, "
                "or build the model with a larger max_seq_len"
            )
        if document_ids is not None and cache is not None:
            raise ValueError("document_ids and cache together: a cache holds one document a row, drop document_ids")
        positions = torch.arange(start, end, device=input_ids.device)  # (T,)
        mask = self._mask(positions, end, document_ids)
        x = self.token_embedding(input_ids)  # (B, T, dim)
        if mask is not None:
            mask = added_to_scores(mask, product_dtype(x))
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = self.embedding_dropout(x)
        for i, block in enumerate(self.blocks):
            x = block(
                x,
                mask=mask,
                is_causal=mask is None and start == 0,
                positions=positions,
                cache=None if cache is None else cache.layers[i],
            )
        return self.norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities (..., vocab_size) of features (..., dim)."""
        return F.linear(features, self.token_embedding.weight) if self.head is None else self.head(features)

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        document_ids: Tensor | None = None,
        chunk_tokens: int | None = None,
    ) -> Tensor:
        """Mean cross entropy of `forward` against labels (B, T), -100 left out, without its logits in memory.

        chunk_tokens: see `linear_cross_entropy`.
        """
        features = self.forward_features(input_ids, document_ids=document_ids).flatten(0, 1)
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        if isinstance(self.head, LoRALinear):
            features, weight = self.head.factors(features)
        return linear_cross_entropy(features, weight, labels.flatten(), chunk_tokens)

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """What the last forward pass in training asks to be added to the loss, by name."""
        found: dict[str, Tensor] = {}
        for router in self._routers():
            for name, loss in router.losses.items():
                found[name] = found[name] + loss if name in found else loss
        return found

    def step_counts(self) -> Tensor | None:
        """How many tokens of the last forward pass in training chose each expert (depth, num_experts)."""
        loads = [router.load for router in self._routers()]
        return torch.stack(loads) if loads else None  # type: ignore[arg-type]

    def after_step(self, counts: Tensor, good: Tensor) -> None:
        """Balance the experts by the `step_counts` of a whole optimiser step, if it was good."""
        for router, load in zip(self._routers(), counts, strict=True):
            router.after_step(load, good)

    def _routers(self) -> list[Router]:
        layers = [block.feedforward for block in self.blocks]
        return [layer.router for layer in layers if isinstance(layer, MixtureOfExperts)]

    def make_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for batch_size sequences of up to max_len tokens; its `length` counts them.

        Raises:
            ValueError: if max_len is larger than max_seq_len.
        """
        if max_len > self.max_seq_len:
            raise ValueError(
                f"a cache of max_len={max_len} is longer than max_seq_len={self.max_seq_len}: ask for a shorter one"
            )
        return KVCache(len(self.blocks), batch_size, max_len)

    def _mask(self, positions: Tensor, end: int, document_ids: Tensor | None) -> Tensor | None:
        """None where attention's own causal path, or a single token that sees all the cache, needs no mask."""
        # An exported program is for all sizes: there the comparison, which would be made once, is left out.
        seen_whole = self.window is None or (not torch.compiler.is_exporting() and self.window >= end)
        window = None if seen_whole else self.window
        chunk_after_cache = 1 < positions.shape[0] < end  # len() would fix the size in an exported program
        if window is None and document_ids is None and not chunk_after_cache:
            return None
        keys = torch.arange(end, device=positions.device)  # (S,)
        return causal_mask(positions, keys, window=window, document_ids=document_ids)
