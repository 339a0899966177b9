"""Masked autoencoder: a vision transformer reads a part of an image's patches, and a small one paints the rest."""

import math

import torch
from torch import Tensor, nn

from scaledl.layers.attention import Attention
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.position import sinusoidal
from scaledl.layers.transformer import TransformerBlock


class MAE(nn.Module):
    """The encoder sees the patches that are left, the decoder these and a token for each hidden one (He et al. 2022,
    arXiv:2111.06377, section 3).

    The encoder's parameters have the names that `ViT` gives them, so that a run of a ViT with a class token can begin
    with them (init_from).

    Args:
        image_size: height and width; images are square.
        decoder_dim, decoder_depth, decoder_num_heads: of the decoder, whose hidden layers are 4 * decoder_dim wide.

    Raises:
        ValueError: if patch_size does not divide image_size, a width is no multiple of 4, or x has another shape.
    """

    block_types = (TransformerBlock,)
    position_embedding: Tensor
    decoder_position_embedding: Tensor

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        patch_size: int,
        *,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        hidden_dim: int | None = None,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_eps: float = 1e-6,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"image_size={image_size} is not divisible by patch_size={patch_size}: patches tile the image, choose "
                "a divisor"
            )
        for name, width in (("dim", dim), ("decoder_dim", decoder_dim)):
            if width % 4:
                raise ValueError(f"{name}={width} holds sines and cosines of two axes: make it a multiple of 4")
        self.in_shape, self.patch_size = (in_channels, image_size, image_size), patch_size
        self.grid = image_size // patch_size
        self.num_patches, self.num_features, self.init_std = self.grid**2, dim, init_std
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.register_buffer("position_embedding", torch.empty(1 + self.num_patches, dim))
        self.blocks = _blocks(dim, depth, num_heads, hidden_dim, norm_eps, init_std)
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.decoder_embedding = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(decoder_dim))
        self.register_buffer("decoder_position_embedding", torch.empty(1 + self.num_patches, decoder_dim))
        self.decoder_blocks = _blocks(decoder_dim, decoder_depth, decoder_num_heads, None, norm_eps, init_std)
        self.decoder_norm = nn.LayerNorm(decoder_dim, eps=norm_eps)
        self.head = nn.Linear(decoder_dim, in_channels * patch_size**2)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.patch_embedding.weight, std=1 / math.sqrt(self.patch_embedding.weight[0].numel()))
        nn.init.normal_(self.head.weight, std=self.init_std)
        nn.init.normal_(self.decoder_embedding.weight, std=1 / math.sqrt(self.num_features))
        for layer in (self.patch_embedding, self.head, self.decoder_embedding):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        for token in (self.class_token, self.mask_token):
            nn.init.normal_(token, std=self.init_std)
        for table in (self.position_embedding, self.decoder_position_embedding):
            table.copy_(sinusoidal_2d(self.grid, table))

    def forward(self, x: Tensor, order: Tensor, num_kept: int) -> Tensor:
        """All patches (B, N, P) as painted from the first num_kept in each sample's random `order` (B, N)."""
        encoded = self._encode(x, order[:, :num_kept])  # (B, 1 + K, dim)
        kept = self.decoder_embedding(encoded)  # (B, 1 + K, decoder_dim)
        hidden = self.mask_token.to(kept.dtype).expand(len(x), self.num_patches - num_kept, -1)
        tokens = torch.cat((kept[:, 1:], hidden), dim=1).take_along_dim(order.argsort(1)[..., None], dim=1)
        y = torch.cat((kept[:, :1], tokens), dim=1) + self.decoder_position_embedding  # (B, 1 + N, decoder_dim)
        for block in self.decoder_blocks:
            y = block(y)
        return self.head(self.decoder_norm(y))[:, 1:]

    def forward_features(self, x: Tensor) -> Tensor:
        """The mean over all patches, none hidden, of what the encoder makes of them: (B, dim)."""
        return self._encode(x, None)[:, 1:].mean(1)

    def patches(self, x: Tensor) -> Tensor:
        """(B, N, P) of images (B, C, H, W): patches row by row; within one, pixels row by row, and their channels."""
        tiles = x.unfold(2, self.patch_size, self.patch_size).unfold(3, self.patch_size, self.patch_size)
        return tiles.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def images(self, patches: Tensor) -> Tensor:
        """(B, C, H, W) of patches (B, N, P): `patches` back again."""
        p, channels = self.patch_size, self.in_shape[0]
        tiles = patches.reshape(-1, self.grid, self.grid, p, p, channels)
        return tiles.permute(0, 5, 1, 3, 2, 4).reshape(-1, *self.in_shape)

    def _encode(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """The class token and the patches of these numbers (B, K), or all: (B, 1 + K, dim)."""
        if x.shape[1:] != self.in_shape:
            raise ValueError(
                f"images of shape {tuple(x.shape[1:])}, but the model was built for {self.in_shape}: "
                "make in_channels and image_size those of the data"
            )
        x = self.patch_embedding(x).flatten(2).mT + self.position_embedding[1:]  # (B, N, dim)
        if kept is not None:
            x = x.take_along_dim(kept[..., None], dim=1)  # (B, K, dim)
        token = (self.class_token + self.position_embedding[0]).to(x.dtype)
        x = torch.cat((token.expand(len(x), 1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def sinusoidal_2d(grid: int, like: Tensor) -> Tensor:
    """(1 + grid², dim) for dim of `like` (_, dim): zeros for a class token, then each place's column and row."""
    places = torch.arange(grid, device=like.device)
    axis = sinusoidal(places, like.shape[1] // 2)  # (grid, dim / 2)
    of_columns, of_rows = axis.repeat(grid, 1), axis.repeat_interleave(grid, 0)  # (grid², dim / 2)
    table = torch.cat((of_columns, of_rows), dim=1)
    return torch.cat((table.new_zeros(1, like.shape[1]), table))


def _blocks(
    dim: int, depth: int, num_heads: int, hidden_dim: int | None, norm_eps: float, init_std: float
) -> nn.ModuleList:
    return nn.ModuleList(
        TransformerBlock(
            dim,
            Attention(dim, num_heads, init_std=init_std),
            FeedForward(dim, hidden_dim, init_std=init_std),
            norm_eps=norm_eps,
        )
        for _ in range(depth)
    )
