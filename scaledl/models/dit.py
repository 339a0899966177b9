"""Diffusion transformer: a ViT of noisy patches, whose blocks are modulated by time and class."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.attention import Attention
from scaledl.layers.condition import TimeAndClass
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.position import sinusoidal
from scaledl.layers.precision import like_weights
from scaledl.layers.transformer import TransformerBlock


class DiT(nn.Module):
    """The language model's block, with adaLN-zero, on patches (Peebles & Xie 2023, arXiv:2212.09748).

    Positions are sinusoids of row and column, so that no table must fit. The output is zero at first.

    Args:
        image_size: height and width; images are square.
        num_classes: of the labels; null = unconditional.
        hidden_dim: of the feed-forward layers; null = 4 * dim.

    Raises:
        ValueError: if patch_size does not divide image_size, 4 not dim, or x has another shape.
    """

    block_types = (TransformerBlock,)

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        num_classes: int | None,
        patch_size: int = 2,
        dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        hidden_dim: int | None = None,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size={image_size} is not divisible by patch_size={patch_size}: patches tile the image, choose "
                "a divisor"
            )
        if dim % 4:
            raise ValueError(
                f"dim={dim} is not divisible by 4: rows and columns have sines and cosines, choose a multiple"
            )
        self.in_shape = (in_channels, image_size, image_size)
        self.num_classes, self.patch_size, self.dim = num_classes, patch_size, dim
        self.condition = TimeAndClass(dim, num_classes)
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim,
                Attention(dim, num_heads, dropout=dropout),
                FeedForward(dim, hidden_dim, activation="gelu_tanh", dropout=dropout),
                norm_eps=norm_eps,
                condition_dim=dim,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, in_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.patch_embedding.weight, std=1 / math.sqrt(self.patch_embedding.weight[0].numel()))
        assert self.patch_embedding.bias is not None
        nn.init.zeros_(self.patch_embedding.bias)
        for linear in (self.modulation, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """(B, in_channels, image_size, image_size), as x, at times t (B,) in [0, 1], of classes y (B,), or None."""
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape[1:])}, but the model was built for {self.in_shape}: "
                "make in_channels and image_size those of the data"
            )
        x = like_weights(x, self)
        condition = self.condition(t, y, x.dtype)
        x = self.patch_embedding(x).flatten(2).mT  # (B, T, dim), patches row by row
        x = x + self._positions(x.device).type_as(x)
        for block in self.blocks:
            x = block(x, condition=condition)
        shift, scale = self.modulation(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, dim) each
        x = self.head(self.norm(x) * (1 + scale) + shift)  # (B, T, p * p * C)
        return F.pixel_shuffle(x.mT.unflatten(2, self._grid), self.patch_size)

    @property
    def _grid(self) -> tuple[int, int]:
        return (self.in_shape[1] // self.patch_size,) * 2

    def _positions(self, device: torch.device) -> Tensor:
        """(T, dim): half of the features tell the row, half the column."""
        rows, columns = self._grid
        tables = [sinusoidal(torch.arange(n, device=device), self.dim // 2) for n in (rows, columns)]
        row, column = tables[0][:, None].expand(-1, columns, -1), tables[1][None].expand(rows, -1, -1)
        return torch.cat((row, column), dim=-1).flatten(0, 1)
