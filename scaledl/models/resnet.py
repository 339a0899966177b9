"""Residual networks: plain, pre-activation, wide, ResNeXt, with attention, for ImageNet or CIFAR, by arguments."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.conv import (
    AttentionName,
    ConvNorm,
    NonLocal,
    NormName,
    check_images,
    make_attention,
    make_norm2d,
)
from scaledl.layers.stochastic_depth import StochasticDepth

BlockName = Literal["basic", "bottleneck"]
Row = tuple[int, int, int, int]  # out_channels, kernel_size, stride, groups of a convolution


class PadShortcut(nn.Module):
    """Every stride-th place, with channels of zeros added (He et al. 2016a, option A): no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.missing // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))


class ResidualBlock(nn.Module):
    """y = act(shortcut(x) + branch(x)) (He et al. 2016a), or, with pre_activation, a norm and an activation at the head
    of the branch and none after the sum (He et al. 2016b).

    The branch ends with its attention (Hu et al. 2018, fig. 3; Woo et al. 2018, fig. 3).
    """

    def __init__(
        self,
        in_channels: int,
        convolutions: list[Row],
        *,
        shortcut: Literal["projection", "pad"] = "projection",
        pre_activation: bool = False,
        attention: AttentionName = "none",
        attention_reduction: int = 16,
        norm: NormName = "batch",
        zero_init: bool = False,
        path_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.zero_init = zero_init
        out_channels, stride = convolutions[-1][0], max(row[2] for row in convolutions)
        self.norm = make_norm2d(norm, in_channels) if pre_activation else None
        after = "none" if pre_activation else norm
        self.shortcut: nn.Module | None = None
        if (in_channels, stride) != (out_channels, 1):
            self.shortcut = (
                PadShortcut(in_channels, out_channels, stride)
                if shortcut == "pad"
                else ConvNorm(in_channels, out_channels, 1, stride, norm=after, activation="none")
            )
        layers, channels = [], in_channels
        for width, kernel_size, step, groups in convolutions[:-1]:
            layers.append(ConvNorm(channels, width, kernel_size, step, groups=groups, norm=norm))
            channels = width
        width, kernel_size, step, groups = convolutions[-1]
        last = ConvNorm(channels, width, kernel_size, step, groups=groups, norm=after, activation="none")
        self.layers = nn.Sequential(*layers, last)
        self.attention = make_attention(attention, out_channels, attention_reduction)
        self.path_dropout = StochasticDepth(path_dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.zero_init:
            last = self.layers[-1]
            nn.init.zeros_(last.conv.weight if self.norm is not None else last.norm.weight)  # type: ignore[arg-type, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        branch = x if self.norm is None else F.relu(self.norm(x))
        if self.shortcut is not None:
            x = self.shortcut(branch)
        x = x + self.path_dropout(self.attention(self.layers(branch)))
        return F.relu(x) if self.norm is None else x


class ResNet(nn.Module):
    """Stages of residual blocks, each at half the size and with more channels (He et al. 2016a, arXiv:1512.03385).

    Bottlenecks have their stride in the 3x3 convolution (torchvision's "v1.5"). Of this class are ResNet-18 to -152,
    their pre-activation form (arXiv:1603.05027), SE-ResNet (arXiv:1709.01507), ResNeXt (arXiv:1611.05431: groups and
    base_width), Wide ResNet (arXiv:1605.07146: base_width, or dims) and, with the stem "cifar", ResNet-20 to -110.

    Args:
        depths: blocks of each stage; every stage but the first begins with stride 2.
        dims: channels of each stage; a bottleneck puts out four times as many. dims[0] are the stem's, too.
        stem: "imagenet" is a 7x7 convolution and pooling, a quarter of the size; "cifar" a 3x3 convolution.
        shortcut: where a block changes the shape, a 1x1 convolution, or padding with zeros (CIFAR's ResNets).
        groups, base_width: of the 3x3 convolution of a bottleneck; base_width is its channels per group at dims of 64.
        attention: at the end of each block's branch; attention_reduction is channels over hidden units of se and cbam.
        non_local: stages, counted from 0, with a non-local block before their last residual block (Wang et al. 2018).
        zero_init_residual: each block begins as the identity (Goyal et al. 2017, section 5.1).
        path_dropout: of the last block's branch (`StochasticDepth`); blocks before it have less, from 0 on.
        dropout: before the last layer.

    Raises:
        ValueError: if arguments contradict each other, or images have other channels.
    """

    block_types = (ResidualBlock, NonLocal)

    def __init__(
        self,
        in_channels: int,
        out_dim: int,
        *,
        depths: list[int],
        dims: list[int],
        block: BlockName = "basic",
        stem: Literal["imagenet", "cifar"] = "imagenet",
        shortcut: Literal["projection", "pad"] = "projection",
        pre_activation: bool = False,
        groups: int = 1,
        base_width: int = 64,
        attention: AttentionName = "none",
        attention_reduction: int = 16,
        non_local: list[int] = [],  # noqa: B006 - read only
        norm: NormName = "batch",
        zero_init_residual: bool = False,
        path_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths or min(*depths, *dims) < 1:
            raise ValueError(f"depths={list(depths)}, dims={list(dims)}: give one number of 1 or more for each stage")
        if block == "basic" and (groups, base_width) != (1, 64):
            raise ValueError(f"groups={groups}, base_width={base_width} are of bottlenecks: set block to bottleneck")
        if not set(non_local) <= set(range(len(depths))):
            raise ValueError(f"non_local={list(non_local)}: name stages, from 0 to {len(depths) - 1}")
        if shortcut == "pad" and list(dims) != sorted(dims):
            raise ValueError(f"dims={list(dims)} shrink, which shortcut=pad cannot: take shortcut=projection")
        self.in_channels = in_channels
        after = "none" if pre_activation else norm  # the first block has a norm and an activation at its head then
        activation: Literal["relu", "none"] = "none" if pre_activation else "relu"
        if stem == "imagenet":
            pool = nn.MaxPool2d(3, 2, padding=1)
            first = ConvNorm(in_channels, dims[0], 7, 2, norm=after, activation=activation)
            self.stem = nn.Sequential(first, pool)
        else:
            self.stem = nn.Sequential(ConvNorm(in_channels, dims[0], norm=after, activation=activation))
        channels, index, stages = dims[0], 0, []
        for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
            blocks: list[nn.Module] = []
            for place in range(depth):
                if stage in non_local and place == depth - 1:
                    blocks.append(NonLocal(channels, norm))
                stride = 2 if stage and not place else 1
                rows = _convolutions(block, dim, stride, groups, base_width)
                blocks.append(
                    ResidualBlock(
                        channels,
                        rows,
                        shortcut=shortcut,
                        pre_activation=pre_activation,
                        attention=attention,
                        attention_reduction=attention_reduction,
                        norm=norm,
                        zero_init=zero_init_residual,
                        path_dropout=path_dropout * index / max(1, sum(depths) - 1),
                    )
                )
                channels, index = rows[-1][0], index + 1
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Sequential(make_norm2d(norm, channels), nn.ReLU()) if pre_activation else nn.Identity()
        self.num_features = channels
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Means of the last stage's maps (B, num_features)."""
        check_images(x, self.in_channels)
        return self.norm(self.stages(self.stem(x))).mean((2, 3))


def _convolutions(block: BlockName, dim: int, stride: int, groups: int, base_width: int) -> list[Row]:
    if block == "basic":
        return [(dim, 3, stride, 1), (dim, 3, 1, 1)]
    width = dim * base_width // 64 * groups
    return [(width, 1, 1, 1), (width, 3, stride, groups), (4 * dim, 1, 1, 1)]
