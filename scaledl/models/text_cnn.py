"""Convolutions over words: phrases, wherever they stand."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PAD_ID = 0


class TextCNN(nn.Module):
    """For each kernel, by how much the phrase that fits it best fits; then a linear map (Kim 2014, CNN-rand).

    Args:
        vocab_size: of token ids x (B, T), padded behind with id 0; how much padding there is makes no difference.
        dim: of the embeddings.
        kernel_sizes: lengths of the phrases, in words.
        channels: kernels of each length.
        dropout: of the pooled answers.
    """

    block_types = ()

    def __init__(
        self,
        vocab_size: int,
        out_dim: int,
        dim: int = 128,
        kernel_sizes: list[int] = [3, 4, 5],  # noqa: B006 (only read)
        channels: int = 100,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_features, self.kernel_sizes = channels * len(kernel_sizes), kernel_sizes
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=PAD_ID)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, channels, size) for size in kernel_sizes)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(self.num_features, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of token ids x (B, T)."""
        return self.out(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, num_features)."""
        there = (x != PAD_ID)[:, None]  # (B, 1, T): where a phrase may begin
        there[..., 0] = True
        embedded = self.embedding(x).mT  # (B, dim, T)
        found = []
        for size, convolution in zip(self.kernel_sizes, self.convolutions, strict=True):
            answers = convolution(F.pad(embedded, (0, size - 1)))  # (B, channels, T)
            found.append(answers.masked_fill(~there, -torch.inf).amax(2).relu())
        return torch.cat(found, 1)
