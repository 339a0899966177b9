"""Encoder-decoder transformer for sequence to sequence: Vaswani's base model, Marian or torch's by its arguments."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention, KVCache, causal_mask
from scaledl.layers.feedforward import Activation, FeedForward
from scaledl.layers.norm import make_norm
from scaledl.layers.position import sinusoidal
from scaledl.layers.transformer import TransformerBlock


class EncoderDecoder(nn.Module):
    """p(y | x) = ∏ p(y_t | y_<t, x): a decoder that reads the encoder's states (Vaswani et al. 2017).

    The defaults are its base model: norms behind the residuals, embeddings times sqrt(dim) plus sinusoidal positions,
    one matrix for both embeddings and the logits (section 3.4). Weights start with Glorot's variance, embeddings with
    1 / dim.

    Args:
        hidden_dim: of the feed-forward layers; null: 4·dim.
        pre_norm: norms in front of each branch instead, which trains without a long warm-up (Xiong et al. 2020).
        final_norm: after the last block of each side; null: with pre_norm only.
        share_embeddings: source and target read one matrix; they then need one vocabulary.
        tie_embeddings: logits are products with the target embedding; there is no head then.
        logits_bias: one number for each word, as in Marian (Junczys-Dowmunt et al. 2018).
        pad_id: source tokens that no one attends to.

    Raises:
        ValueError: if sizes do not fit.
    """

    block_types = (TransformerBlock,)

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        dim: int = 512,
        encoder_depth: int = 6,
        decoder_depth: int = 6,
        num_heads: int = 8,
        hidden_dim: int | None = None,
        activation: Activation = "relu",
        dropout: float = 0.1,
        pre_norm: bool = False,
        final_norm: bool | None = None,
        norm_eps: float = 1e-5,
        share_embeddings: bool = True,
        tie_embeddings: bool = True,
        logits_bias: bool = False,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        if share_embeddings and src_vocab_size != tgt_vocab_size:
            raise ValueError(
                f"share_embeddings, but src_vocab_size={src_vocab_size} and tgt_vocab_size={tgt_vocab_size}: give the "
                "data one vocabulary (data.joint=true), or set model.share_embeddings=false"
            )
        if dim % 2:
            raise ValueError(f"dim={dim} is odd; sinusoidal positions are pairs of sine and cosine: choose an even dim")
        self.num_features, self.pad_id = dim, pad_id
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        final_norm = pre_norm if final_norm is None else final_norm

        def attention() -> Attention:
            return Attention(dim, num_heads, dropout=dropout, init_std=dim**-0.5)

        def blocks(depth: int, reads_context: bool) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(
                    dim,
                    attention(),
                    FeedForward(
                        dim,
                        hidden_dim,
                        activation=activation,
                        dropout=dropout,
                        init_std=math.sqrt(2 / (dim + hidden_dim)),
                    ),
                    cross_attention=attention() if reads_context else None,
                    norm_eps=norm_eps,
                    pre_norm=pre_norm,
                )
                for _ in range(depth)
            )

        self.src_embedding = None if share_embeddings else nn.Embedding(src_vocab_size, dim)
        self.embedding = nn.Embedding(tgt_vocab_size, dim)
        self.embedding_dropout = nn.Dropout(dropout)
        self.encoder = blocks(encoder_depth, reads_context=False)
        self.encoder_norm = make_norm("layernorm", dim, norm_eps, bias=True) if final_norm else None
        self.decoder = blocks(decoder_depth, reads_context=True)
        self.decoder_norm = make_norm("layernorm", dim, norm_eps, bias=True) if final_norm else None
        self.head = None if tie_embeddings else nn.Linear(dim, tgt_vocab_size, bias=False)
        self.logits_bias = nn.Parameter(torch.zeros(tgt_vocab_size)) if logits_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in (self.src_embedding, self.embedding, self.head):
            if module is not None:
                nn.init.normal_(module.weight, std=self.num_features**-0.5)
        if self.logits_bias is not None:
            nn.init.zeros_(self.logits_bias)

    def forward(self, src_ids: Tensor, tgt_ids: Tensor, *, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, tgt_vocab_size) of the token after each of tgt_ids (B, T), given src_ids (B, S).

        Padding stands behind the tokens. cache: of `make_cache`; tgt_ids then holds the tokens after the cached ones,
        and only the first call runs the encoder.
        """
        start = 0 if cache is None else cache.length
        context_mask = (src_ids != self.pad_id)[:, None, None, :]  # (B, 1, 1, S)
        context = self._encode(src_ids, context_mask) if start == 0 else None
        positions = torch.arange(start, start + tgt_ids.shape[1], device=tgt_ids.device)  # (T,)
        mask = None  # a first chunk has attention's own causal path; a single token sees all the cache
        if start > 0 and len(positions) > 1:
            mask = causal_mask(positions, torch.arange(start + len(positions), device=tgt_ids.device))
        x = self._embed(self.embedding, tgt_ids, positions)  # (B, T, dim)
        for i, block in enumerate(self.decoder):
            x = block(
                x,
                mask=mask,
                is_causal=start == 0,
                cache=None if cache is None else cache.layers[i],
                context=context,
                context_mask=context_mask,
            )
        if self.decoder_norm is not None:
            x = self.decoder_norm(x)
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        return logits if self.logits_bias is None else logits + self.logits_bias

    def make_cache(self, batch_size: int, max_len: int) -> KVCache:
        """An empty cache for batch_size sequences of up to max_len target tokens."""
        return KVCache(len(self.decoder), batch_size, max_len)

    def _encode(self, src_ids: Tensor, mask: Tensor) -> Tensor:
        positions = torch.arange(src_ids.shape[1], device=src_ids.device)  # (S,)
        x = self._embed(self.embedding if self.src_embedding is None else self.src_embedding, src_ids, positions)
        for block in self.encoder:
            x = block(x, mask=mask)
        return x if self.encoder_norm is None else self.encoder_norm(x)  # (B, S, dim)

    def _embed(self, embedding: nn.Embedding, ids: Tensor, positions: Tensor) -> Tensor:
        x = embedding(ids)
        x = x * math.sqrt(self.num_features) + sinusoidal(positions, self.num_features).type_as(x)
        return self.embedding_dropout(x)
