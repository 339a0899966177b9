"""DenseNet: every layer reads the maps of all layers before it."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.conv import ConvNorm, NormName, check_images, make_norm2d


class DenseLayer(nn.Module):
    """Adds growth_rate maps to those it reads: norm -> 1x1 -> norm -> 3x3 (Huang et al. 2017, DenseNet-B)."""

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int, norm: NormName, dropout: float) -> None:
        super().__init__()
        self.norm = make_norm2d(norm, in_channels)
        self.layers = nn.Sequential(
            ConvNorm(in_channels, bottleneck * growth_rate, 1, norm=norm),
            ConvNorm(bottleneck * growth_rate, growth_rate, norm="none", activation="none"),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(F.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """Half the channels (compression of DenseNet-C) at half the size."""

    def __init__(self, in_channels: int, norm: NormName) -> None:
        super().__init__()
        self.norm = make_norm2d(norm, in_channels)
        self.conv = ConvNorm(in_channels, in_channels // 2, 1, norm="none", activation="none")
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(F.relu(self.norm(x))))


class DenseNet(nn.Module):
    """Blocks of densely connected layers with transitions between (Huang et al. 2017, arXiv:1608.06993).

    Args:
        depths: layers of each dense block.
        growth_rate: maps that each layer adds; it computes them from bottleneck times as many.
        stem: "imagenet" is a 7x7 convolution and pooling, a quarter of the size; "cifar" a 3x3 convolution.
        stem_dim: channels of the stem; null = 2 * growth_rate.
        dropout: at the end of each layer.

    Raises:
        ValueError: if a number is below 1, or images have other channels.
    """

    block_types = (DenseLayer, Transition)

    def __init__(
        self,
        in_channels: int,
        out_dim: int,
        *,
        depths: list[int],
        growth_rate: int = 32,
        bottleneck: int = 4,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        stem_dim: int | None = None,
        norm: NormName = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = 2 * growth_rate if stem_dim is None else stem_dim
        if not depths or min(*depths, growth_rate, bottleneck, channels) < 1:
            raise ValueError(
                f"depths={list(depths)}, growth_rate={growth_rate}, bottleneck={bottleneck}, stem_dim={stem_dim}: give "
                "at least one block, and 1 or more everywhere"
            )
        self.in_channels = in_channels
        if stem == "imagenet":
            pool = nn.MaxPool2d(3, 2, padding=1)
            self.stem = nn.Sequential(ConvNorm(in_channels, channels, 7, 2, norm=norm), pool)
        else:  # the first layer has a norm and an activation at its head
            self.stem = nn.Sequential(ConvNorm(in_channels, channels, norm="none", activation="none"))
        blocks: list[nn.Module] = []
        for index, depth in enumerate(depths):
            if index:
                blocks.append(Transition(channels, norm))
                channels //= 2
            for _ in range(depth):
                blocks.append(DenseLayer(channels, growth_rate, bottleneck, norm, dropout))
                channels += growth_rate
        self.blocks = nn.Sequential(*blocks)
        self.norm = make_norm2d(norm, channels)
        self.num_features = channels
        self.head = nn.Linear(channels, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Means of the last block's maps (B, num_features)."""
        check_images(x, self.in_channels)
        return F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3))
