"""ConvNeXt: a convolutional network with the proportions of a vision transformer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.conv import check_images
from scaledl.layers.stochastic_depth import StochasticDepth

EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels at each place of x (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gain · MLP(norm(depthwise convolution of x)) (Liu et al. 2022, fig. 4).

    The gain of each channel (LayerScale, Touvron et al. 2021) begins at layer_scale.
    """

    def __init__(self, dim: int, kernel_size: int, layer_scale: float, path_dropout: float) -> None:
        super().__init__()
        self.layer_scale = layer_scale
        self.gain = nn.Parameter(torch.empty(dim))
        self.depthwise = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.path_dropout = StochasticDepth(path_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gain, self.layer_scale)
        for layer in (self.depthwise, self.widen, self.narrow):
            _init(layer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, dim)
        y = self.gain * self.narrow(F.gelu(self.widen(y)))
        return x + self.path_dropout(y.permute(0, 3, 1, 2))


class ConvNeXt(nn.Module):
    """Patches, then stages of depthwise convolutions and MLPs at falling sizes (Liu et al. 2022, arXiv:2201.03545).

    Args:
        depths, dims: blocks and channels of each stage; every stage but the first begins with a norm and a 2x2
            convolution that halves the size.
        patch_size: side of the squares that the stem turns into vectors; 1 or 2 for small images.
        kernel_size: of the depthwise convolutions.
        layer_scale: initial gain of every block.
        path_dropout: of the last block's branch (`StochasticDepth`); blocks before it have less, from 0 on.

    Raises:
        ValueError: if arguments contradict each other, or images have other channels or are too small.
    """

    block_types = (ConvNeXtBlock,)

    def __init__(
        self,
        in_channels: int,
        out_dim: int,
        *,
        depths: list[int],
        dims: list[int],
        patch_size: int = 4,
        kernel_size: int = 7,
        layer_scale: float = 1e-6,
        path_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths or min(*depths, *dims) < 1:
            raise ValueError(f"depths={list(depths)}, dims={list(dims)}: give one number of 1 or more for each stage")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} has no middle: take an odd number")
        self.in_channels, self.smallest = in_channels, patch_size * 2 ** (len(depths) - 1)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, dims[0], patch_size, patch_size), ChannelNorm(dims[0], EPS))
        stages: list[nn.Module] = []
        rates = iter(torch.linspace(0, path_dropout, sum(depths), device="cpu").tolist())
        for index, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            layers: list[nn.Module] = []
            if index:
                layers += [ChannelNorm(dims[index - 1], EPS), nn.Conv2d(dims[index - 1], dim, 2, 2)]
            layers += [ConvNeXtBlock(dim, kernel_size, layer_scale, next(rates)) for _ in range(depth)]
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.num_features = dims[-1]
        self.norm = nn.LayerNorm(dims[-1], eps=EPS)
        self.head = nn.Linear(dims[-1], out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in [self.head, self.stem[0], *(stage[1] for stage in list(self.stages)[1:])]:  # type: ignore[index]
            _init(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised means of the last stage's maps (B, num_features)."""
        check_images(x, self.in_channels, self.smallest)
        return self.norm(self.stages(self.stem(x)).mean((2, 3)))


def _init(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
