"""Inverted residuals: EfficientNet, EfficientNetV2 and MobileNetV2 by their stage tables."""

import math
from functools import partial

from torch import Tensor, nn

from scaledl.layers.conv import Activation, ConvNorm, NormName, SqueezeExcite, check_images
from scaledl.layers.stochastic_depth import StochasticDepth


class MBConv(nn.Module):
    """Widen -> depthwise convolution -> squeeze-excite -> narrow, linear at the end (Sandler et al. 2018; Tan & Le
    2019); fused: one convolution widens and sees the neighbours (Tan & Le 2021). Added to its input where shapes agree.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expand_ratio: int,
        kernel_size: int,
        stride: int,
        *,
        fused: bool,
        se_ratio: float,
        activation: Activation,
        norm: NormName,
        norm_eps: float,
        path_dropout: float,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        hidden_dim = in_channels * expand_ratio
        conv = partial(ConvNorm, norm=norm, norm_eps=norm_eps)
        layers: list[nn.Module] = []
        if fused:
            seen = hidden_dim if expand_ratio > 1 else out_channels
            layers.append(conv(in_channels, seen, kernel_size, stride, activation=activation))
        else:
            if expand_ratio > 1:
                layers.append(conv(in_channels, hidden_dim, 1, activation=activation))
            layers.append(conv(hidden_dim, hidden_dim, kernel_size, stride, groups=hidden_dim, activation=activation))
            if se_ratio:
                layers.append(SqueezeExcite(hidden_dim, max(1, int(in_channels * se_ratio)), activation))
        if not fused or expand_ratio > 1:
            layers.append(conv(hidden_dim, out_channels, 1, activation="none"))
        self.layers = nn.Sequential(*layers)
        self.path_dropout = StochasticDepth(path_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path_dropout(self.layers(x)) if self.residual else self.layers(x)


class EfficientNet(nn.Module):
    """Depth and width scaled together from a searched baseline (Tan & Le 2019, arXiv:1905.11946).

    EfficientNetV2 (arXiv:2104.00298) fuses its first stages; MobileNetV2 (arXiv:1801.04381) has no squeeze-excite.

    Args:
        stages: a row [expand_ratio, out_channels, depth, stride, kernel_size] for each stage.
        fused_stages: so many of the first stages are fused, and without squeeze-excite.
        width_mult, depth_mult: of channels, to multiples of 8, and of depths, rounded up.
        stem_dim, head_dim: channels of the first and the last convolution, before width_mult.
        stem_stride: 1 for small images.
        se_ratio: hidden units of squeeze-excite over the block's input channels; 0: none.
        path_dropout: of the last block's branch (`StochasticDepth`); blocks before it have less, from 0 on.
        dropout: before the last layer.

    Raises:
        ValueError: if a row is not five numbers of 1 or more, or images have other channels.
    """

    block_types = (MBConv,)

    def __init__(
        self,
        in_channels: int,
        out_dim: int,
        *,
        stages: list[list[int]],
        fused_stages: int = 0,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        stem_dim: int = 32,
        stem_stride: int = 2,
        head_dim: int = 1280,
        se_ratio: float = 0.25,
        activation: Activation = "silu",
        norm: NormName = "batch",
        norm_eps: float = 1e-3,
        path_dropout: float = 0.2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        for index, row in enumerate(stages):
            if len(row) != 5 or min(row) < 1:
                raise ValueError(
                    f"stages[{index}]={list(row)}: a stage is five numbers of 1 or more, "
                    "[expand_ratio, out_channels, depth, stride, kernel_size]"
                )
        self.in_channels = in_channels
        channels = _scaled(stem_dim, width_mult)
        self.stem = ConvNorm(in_channels, channels, 3, stem_stride, norm=norm, norm_eps=norm_eps, activation=activation)
        depths = [math.ceil(row[2] * depth_mult) for row in stages]
        blocks: list[nn.Module] = []
        for stage, (expand_ratio, out_channels, _, stride, kernel_size) in enumerate(stages):
            for place in range(depths[stage]):
                block = MBConv(
                    channels,
                    _scaled(out_channels, width_mult),
                    expand_ratio,
                    kernel_size,
                    1 if place else stride,
                    fused=stage < fused_stages,
                    se_ratio=se_ratio,
                    activation=activation,
                    norm=norm,
                    norm_eps=norm_eps,
                    path_dropout=path_dropout * len(blocks) / max(1, sum(depths) - 1),
                )
                blocks.append(block)
                channels = _scaled(out_channels, width_mult)
        self.blocks = nn.Sequential(*blocks)
        self.num_features = _scaled(head_dim, width_mult)
        self.last = ConvNorm(channels, self.num_features, 1, norm=norm, norm_eps=norm_eps, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.num_features, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.head.weight, std=0.01)  # as torchvision's MobileNetV2
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Means of the last maps (B, num_features)."""
        check_images(x, self.in_channels)
        return self.last(self.blocks(self.stem(x))).mean((2, 3))


def _scaled(channels: int, width_mult: float) -> int:
    """The nearest multiple of 8 to the product that is not 10 % below it (Sandler et al.'s rounding)."""
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8
