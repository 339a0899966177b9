"""Vision transformer: an image as a sequence of patches. The blocks are in `scaledl.layers`."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.transformer import TransformerBlock


class ViT(nn.Module):
    """An image is worth a sequence of patches, read by a pre-norm encoder (Dosovitskiy et al. 2021, arXiv:2010.11929).

    Args:
        image_size: height and width; images are square.
        pool: what the head reads: the output at a class token put in front, or the mean over all patches (Beyer et al.
            2022, arXiv:2205.01580, section 3).
        path_dropout: of the last block's residual branches (`StochasticDepth`); blocks before it have less, from 0 on.

    Raises:
        ValueError: if patch_size does not divide image_size, or x has another shape.
    """

    block_types = (TransformerBlock,)

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        out_dim: int,
        *,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        hidden_dim: int | None = None,
        norm_eps: float = 1e-6,
        pool: Literal["class_token", "mean"] = "class_token",
        dropout: float = 0.0,
        path_dropout: float = 0.0,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size={image_size} is not divisible by patch_size={patch_size}: patches tile the image, choose "
                "a divisor"
            )
        self.in_shape = (in_channels, image_size, image_size)
        self.num_features = dim
        self.init_std = init_std
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(dim)) if pool == "class_token" else None
        num_tokens = (image_size // patch_size) ** 2 + (pool == "class_token")
        self.position_embedding = nn.Parameter(torch.empty(num_tokens, dim))
        self.embedding_dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                Attention(dim, num_heads, dropout=dropout, init_std=init_std),
                FeedForward(dim, hidden_dim, dropout=dropout, init_std=init_std),
                norm_eps=norm_eps,
                path_dropout=path_dropout * i / max(1, depth - 1),
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.head = nn.Linear(dim, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.patch_embedding.weight, std=1 / math.sqrt(self.patch_embedding.weight[0].numel()))
        nn.init.normal_(self.head.weight, std=self.init_std)
        for linear in (self.patch_embedding, self.head):
            assert linear.bias is not None
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.position_embedding, std=self.init_std)
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=self.init_std)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, image_size, image_size)."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """What the head reads (B, dim): the class token or the mean over patches, after the final norm."""
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape[1:])}, but the model was built for {self.in_shape}: "
                "make in_channels and image_size those of the data"
            )
        x = self.patch_embedding(x).flatten(2).mT  # (B, T, dim), patches row by row
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1)  # (B, 1 + T, dim)
        x = self.embedding_dropout(x + self.position_embedding)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x.mean(1) if self.class_token is None else x[:, 0]
