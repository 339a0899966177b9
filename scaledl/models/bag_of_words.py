"""Which words a text has, without their order."""

import torch
from torch import Tensor, nn

PAD_ID = 0
INIT_STD = 0.1  # large ones would hide for long what is learnt of a word that is seen a few times


class BagOfWords(nn.Module):
    """A linear map of the mean of the words' embeddings (fastText: Joulin et al. 2017, without n-grams).

    Args:
        vocab_size: of token ids x (B, T), padded with id 0, which is left out.
        dim: of the embeddings; null: no embeddings, but logits that are linear in how often each word occurs.
        dropout: of the mean embedding.

    Raises:
        ValueError: if dropout is given without embeddings.
    """

    block_types = ()

    def __init__(self, vocab_size: int, out_dim: int, dim: int | None = 64, dropout: float = 0.0) -> None:
        super().__init__()
        if dropout and not dim:
            raise ValueError(
                f"dropout={dropout} is of embeddings, and dim=null has none; set dropout to 0, or give dim"
            )
        self.num_features = dim or out_dim
        # Summing a row of weights for each word is multiplying the vector of counts by them.
        mode = "mean" if dim else "sum"
        self.embedding = nn.EmbeddingBag(vocab_size, self.num_features, mode=mode, padding_idx=PAD_ID)
        self.bias = None if dim else nn.Parameter(torch.empty(out_dim))
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, out_dim)) if dim else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.bias is None:
            nn.init.normal_(self.embedding.weight, std=INIT_STD)
        else:
            nn.init.zeros_(self.embedding.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of token ids x (B, T)."""
        return self.out(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, num_features): the mean embedding; without embeddings, the logits."""
        bag = self.embedding(x)
        return bag if self.bias is None else bag + self.bias
