"""BERT: a transformer that reads both ways. The blocks are in `scaledl.layers`."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.transformer import TransformerBlock

HeadName = Literal["mlm", "classification"]
PoolName = Literal["first", "mean"]


class MaskedLMHead(nn.Module):
    """Which token stands at a position: a layer, then products with the token embeddings and a bias for each token."""

    def __init__(self, dim: int, vocab_size: int, norm_eps: float, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.transform = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.bias = nn.Parameter(torch.empty(vocab_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.transform.weight, std=self.init_std)
        nn.init.zeros_(self.transform.bias)
        nn.init.zeros_(self.bias)

    def forward(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """Logits (..., vocab_size) of features (..., dim), with token embeddings (vocab_size, dim)."""
        return F.linear(self.norm(F.gelu(self.transform(features))), embeddings, self.bias)


class ClassificationHead(nn.Module):
    """Which class a text is of: a tanh layer, BERT's pooler, then a linear one."""

    def __init__(self, dim: int, out_dim: int, dropout: float, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.pooler = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear in (self.pooler, self.out):
            nn.init.normal_(linear.weight, std=self.init_std)
            nn.init.zeros_(linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (B, out_dim) of pooled features (B, dim)."""
        return self.out(self.dropout(self.pooler(pooled).tanh()))


class BERT(nn.Module):
    """Post-norm encoder that learns from text with holes (Devlin et al. 2019, arXiv:1810.04805), then classifies.

    Args:
        head: "mlm" gives logits of tokens, "classification" logits of out_dim classes. Both have the rest of the
            parameters in common, by their names.
        out_dim: of head="classification" only.
        pool: what a classifier reads: the first token's features (BERT's [CLS]) or the mean over all tokens.
        num_token_types: segments that `token_type_ids` tell apart.
        pad_id: nothing attends to tokens of this id, and no mean counts them; null: every token counts.

    Raises:
        ValueError: if head and out_dim contradict each other, or a sequence is longer than max_seq_len.
    """

    block_types = (TransformerBlock,)

    def __init__(
        self,
        vocab_size: int,
        max_seq_len: int,
        *,
        head: HeadName = "mlm",
        out_dim: int | None = None,
        pool: PoolName = "first",
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        hidden_dim: int | None = None,
        norm_eps: float = 1e-12,
        num_token_types: int = 2,
        pad_id: int | None = 0,
        dropout: float = 0.1,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if (head == "classification") != (out_dim is not None):
            raise ValueError(
                f"head={head} with out_dim={out_dim}: a classifier needs the number of its classes "
                "(out_dim: ${data.num_classes}), masked modelling has none (null)"
            )
        self.max_seq_len = max_seq_len
        self.num_features = dim
        self.pool, self.pad_id, self.init_std = pool, pad_id, init_std
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_seq_len, dim)
        self.token_type_embedding = nn.Embedding(num_token_types, dim)
        self.embedding_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.embedding_dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                Attention(dim, num_heads, dropout=dropout, init_std=init_std),
                FeedForward(dim, hidden_dim, dropout=dropout, init_std=init_std),
                norm_eps=norm_eps,
                pre_norm=False,
            )
            for _ in range(depth)
        )
        self.head: MaskedLMHead | ClassificationHead
        if out_dim is None:
            self.head = MaskedLMHead(dim, vocab_size, norm_eps, init_std)
        else:
            self.head = ClassificationHead(dim, out_dim, dropout, init_std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for embedding in (self.token_embedding, self.position_embedding, self.token_type_embedding):
            nn.init.normal_(embedding.weight, std=self.init_std)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, predict_at: Tensor | None = None
    ) -> Tensor:
        """Logits (B, out_dim) of classes, or (B, T, vocab_size) of the tokens at each position of input_ids (B, T).

        predict_at: (B, M) positions; logits of tokens come for these only, (B, M, vocab_size).
        """
        features = self.forward_features(input_ids, token_type_ids)  # (B, T, dim)
        if isinstance(self.head, ClassificationHead):
            return self.head(self._pooled(features, input_ids))
        if predict_at is not None:
            features = features.take_along_dim(predict_at[..., None], dim=1)  # (B, M, dim)
        return self.head(features, self.token_embedding.weight)

    def forward_features(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Features (B, T, dim) of tokens input_ids (B, T), whose token types are 0 if not given."""
        length = input_ids.shape[1]
        if length > self.max_seq_len:
            raise ValueError(
                f"a sequence of {length} tokens is longer than max_seq_len={self.max_seq_len}: shorten or crop it, "
                "or build the model with a larger max_seq_len"
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.token_embedding(input_ids) + self.token_type_embedding(token_type_ids)  # (B, T, dim)
        x = x + self.position_embedding(torch.arange(length, device=input_ids.device))
        x = self.embedding_dropout(self.embedding_norm(x))
        mask = None if self.pad_id is None else (input_ids != self.pad_id)[:, None, None, :]  # (B, 1, 1, T)
        for block in self.blocks:
            x = block(x, mask=mask)
        return x

    def _pooled(self, features: Tensor, input_ids: Tensor) -> Tensor:
        if self.pool == "first":
            return features[:, 0]  # (B, dim)
        if self.pad_id is None:
            return features.mean(1)
        real = (input_ids != self.pad_id)[..., None]  # (B, T, 1)
        return (features * real).sum(1) / real.sum(1).clamp(min=1)
