"""Two vectors for each word: one as the middle of a window, one as a neighbour in it."""

from torch import Tensor, nn


class Word2Vec(nn.Module):
    """Scores of pairs of words, v_x · u_c (skip-gram with negative sampling, Mikolov et al. 2013b, eq. 4)."""

    block_types = ()

    def __init__(self, vocab_size: int, dim: int = 100) -> None:
        super().__init__()
        self.vocab_size, self.num_features = vocab_size, dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.context_embedding = nn.Embedding(vocab_size, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # As word2vec.c begins: with zeros on one side, every score is 0 and no word is near another by chance.
        nn.init.uniform_(self.embedding.weight, -0.5 / self.num_features, 0.5 / self.num_features)
        nn.init.zeros_(self.context_embedding.weight)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Scores (B, K) of words x (B,) with neighbours context (B, K); without these, the vectors (..., dim) of x."""
        words = self.embedding(x)
        return words if context is None else (words[:, None] * self.context_embedding(context)).sum(-1)
