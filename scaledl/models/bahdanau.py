"""Recurrent sequence to sequence with additive attention: two chains of GRUs read, one writes and looks back."""

import torch
from torch import Tensor, nn

from scaledl.layers.attention import AdditiveAttention


class Memory:
    """What the decoder goes on from: its `state` (B, hidden_dim), and the source as `context` and `keys`."""

    state: Tensor
    context: Tensor
    keys: Tensor
    length = 0

    def select(self, rows: Tensor) -> None:
        """Keep the sequences `rows` (n,) in that order; one that comes twice is copied (beam search)."""
        self.state, self.context, self.keys = self.state[rows], self.context[rows], self.keys[rows]


class Encoder(nn.Module):
    """A GRU over the words, one over them in reverse (Schuster & Paliwal 1997; Bahdanau et al. 2015, section 3.2)."""

    def __init__(self, vocab_size: int, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.forwards = nn.GRU(dim, hidden_dim, batch_first=True)
        self.backwards = nn.GRU(dim, hidden_dim, batch_first=True)
        self.first_state = nn.Linear(2 * hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, src_ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Annotations (B, S, 2·hidden_dim) of src_ids (B, S), and the decoder's first state (B, hidden_dim).

        Not a bidirectional GRU on packed sequences, which would wait for the lengths (B,) on the host.
        """
        x = self.dropout(self.embedding(src_ids))  # (B, S, dim)
        steps = torch.arange(src_ids.shape[1], device=src_ids.device)  # (S,)
        # Each row's tokens in reverse order, the padding behind them where it is.
        mirrored = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]  # (B, S, 1)
        ahead = self.forwards(x)[0]  # (B, S, hidden_dim)
        back = self.backwards(x.gather(1, mirrored.expand_as(x)))[0]
        last = (lengths - 1)[:, None, None].expand(-1, 1, ahead.shape[2])
        ends = torch.cat((ahead.gather(1, last), back.gather(1, last)), dim=2).squeeze(1)  # (B, 2·hidden_dim)
        back = back.gather(1, mirrored.expand_as(back))
        return torch.cat((ahead, back), dim=2), self.first_state(ends).tanh()


class Decoder(nn.Module):
    """s_t = GRU([y_{t-1}; c_t], s_{t-1}), where attention with s_{t-1} reads c_t (Bahdanau et al. 2015, eq. 4 to 6)."""

    def __init__(self, vocab_size: int, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.attention = AdditiveAttention(hidden_dim, 2 * hidden_dim, hidden_dim)
        self.cell = nn.GRUCell(dim + 2 * hidden_dim, hidden_dim)
        self.head = nn.Linear(3 * hidden_dim + dim, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, tgt_ids: Tensor, context: Tensor, mask: Tensor, state: Tensor, keys: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, T, vocab_size), the last state, and the attention's keys, for the call after this one."""
        if keys is None:
            keys = self.attention.key(context)  # (B, S, hidden_dim)
        x = self.dropout(self.embedding(tgt_ids))  # (B, T, dim)
        states, read = [], []
        for y in x.unbind(1):
            c, _ = self.attention(state, context, keys, mask)  # (B, 2·hidden_dim)
            state = self.cell(torch.cat((y, c), dim=1), state)
            states.append(state)
            read.append(c)
        features = torch.cat((torch.stack(states, 1), torch.stack(read, 1), x), dim=2)  # (B, T, 3·hidden_dim + dim)
        return self.head(features), state, keys


class Bahdanau(nn.Module):
    """Neural translation by jointly learning to align and translate (Bahdanau et al. 2015, arXiv:1409.0473).

    As in the paper but for the last layer, which is linear where theirs has a maxout layer before it, and the decoder's
    first state, made of both directions' ends. Its `AdditiveAttention` gives the alignment to who hooks on.

    Args:
        dim: of the embeddings.
        hidden_dim: of the GRUs and of the attention.
        pad_id: source tokens that are not there; they stand behind the others, of which there is at least one.
    """

    block_types = (Encoder, Decoder)

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        dim: int = 256,
        hidden_dim: int = 512,
        dropout: float = 0.5,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.encoder = Encoder(src_vocab_size, dim, hidden_dim, dropout)
        self.decoder = Decoder(tgt_vocab_size, dim, hidden_dim, dropout)

    def forward(self, src_ids: Tensor, tgt_ids: Tensor, *, cache: Memory | None = None) -> Tensor:
        """Logits (B, T, tgt_vocab_size) of the token after each of tgt_ids (B, T), given src_ids (B, S).

        cache: of `make_cache`; tgt_ids then holds the tokens after those of earlier calls.
        """
        mask = src_ids != self.pad_id  # (B, S)
        if cache is not None and cache.length:
            context, state, keys = cache.context, cache.state, cache.keys
        else:
            (context, state), keys = self.encoder(src_ids, mask.sum(1)), None
        logits, state, keys = self.decoder(tgt_ids, context, mask, state, keys)
        if cache is not None:
            cache.context, cache.state, cache.keys = context, state, keys
            cache.length += tgt_ids.shape[1]
        return logits

    def make_cache(self, batch_size: int, max_len: int) -> Memory:
        return Memory()
