"""Inception networks: kernels of several sizes side by side, their maps concatenated."""

from functools import partial

import torch
from torch import Tensor, nn

from scaledl.layers.conv import ConvNorm, NormName, check_images

EPS = 1e-3  # of all norms, in the references


class Branches(nn.Module):
    """Concatenates what its branches make of one input (Szegedy et al. 2015, fig. 2)."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class GoogLeNet(nn.Module):
    """Inception-v1 (Szegedy et al. 2015, arXiv:1409.4842) with norms instead of auxiliary classifiers.

    As torchvision and TensorFlow build it: batch norm after each convolution, 3x3 kernels for the paper's 5x5.

    Raises:
        ValueError: if images have other channels.
    """

    block_types = (Branches,)

    def __init__(self, in_channels: int, out_dim: int, norm: NormName = "batch", dropout: float = 0.2) -> None:
        super().__init__()
        self.in_channels, self.num_features = in_channels, 1024
        conv = partial(ConvNorm, norm=norm, norm_eps=EPS, init_std=0.01)

        def mixed(inputs: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> nn.Module:
            return Branches(
                conv(inputs, one, 1),
                nn.Sequential(conv(inputs, three[0], 1), conv(three[0], three[1])),
                nn.Sequential(conv(inputs, five[0], 1), conv(five[0], five[1])),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), conv(inputs, pooled, 1)),
            )

        half = partial(nn.MaxPool2d, 3, 2, ceil_mode=True)
        self.layers = nn.Sequential(
            conv(in_channels, 64, 7, 2),
            half(),
            conv(64, 64, 1),
            conv(64, 192),
            half(),
            mixed(192, 64, (96, 128), (16, 32), 32),
            mixed(256, 128, (128, 192), (32, 96), 64),
            half(),
            mixed(480, 192, (96, 208), (16, 48), 64),
            mixed(512, 160, (112, 224), (24, 64), 64),
            mixed(512, 128, (128, 256), (24, 64), 64),
            mixed(512, 112, (144, 288), (32, 64), 64),
            mixed(528, 256, (160, 320), (32, 128), 128),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            mixed(832, 256, (160, 320), (32, 128), 128),
            mixed(832, 384, (192, 384), (48, 128), 128),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(1024, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Means of the last maps (B, num_features)."""
        check_images(x, self.in_channels)
        return self.layers(x).mean((2, 3))


class InceptionV3(nn.Module):
    """Large kernels in steps of small and one-sided ones (Szegedy et al. 2016, arXiv:1512.00567), for 299x299 images.

    Without the auxiliary classifier, which its authors found to be no help early and little late in the training.

    Raises:
        ValueError: if images have other channels, or sides below 75.
    """

    block_types = (Branches,)

    def __init__(self, in_channels: int, out_dim: int, norm: NormName = "batch", dropout: float = 0.5) -> None:
        super().__init__()
        self.in_channels, self.num_features = in_channels, 2048
        conv = partial(ConvNorm, norm=norm, norm_eps=EPS, init_std=0.1)
        flat, tall = (1, 7), (7, 1)

        def chain(inputs: int, *steps: tuple) -> nn.Module:
            """Convolutions from (channels, kernel_size); a third number is the stride of one without padding."""
            layers = []
            for channels, kernel_size, *stride in steps:
                how = {"stride": stride[0], "padding": 0} if stride else {}
                layers.append(conv(inputs, channels, kernel_size, **how))
                inputs = channels
            return nn.Sequential(*layers)

        def average(inputs: int, channels: int) -> nn.Module:
            return nn.Sequential(nn.AvgPool2d(3, 1, padding=1), conv(inputs, channels, 1))

        def a(inputs: int, pooled: int) -> Branches:  # fig. 5
            return Branches(
                chain(inputs, (64, 1)),
                chain(inputs, (48, 1), (64, 5)),
                chain(inputs, (64, 1), (96, 3), (96, 3)),
                average(inputs, pooled),
            )

        def c(inputs: int, width: int) -> Branches:  # fig. 6
            return Branches(
                chain(inputs, (192, 1)),
                chain(inputs, (width, 1), (width, flat), (192, tall)),
                chain(inputs, (width, 1), (width, tall), (width, flat), (width, tall), (192, flat)),
                average(inputs, 192),
            )

        def split() -> Branches:
            return Branches(conv(384, 384, (1, 3)), conv(384, 384, (3, 1)))

        def e(inputs: int) -> Branches:  # fig. 7
            return Branches(
                chain(inputs, (320, 1)),
                nn.Sequential(conv(inputs, 384, 1), split()),
                nn.Sequential(conv(inputs, 448, 1), conv(448, 384), split()),
                average(inputs, 192),
            )

        self.layers = nn.Sequential(
            chain(in_channels, (32, 3, 2), (32, 3, 1), (64, 3)),
            nn.MaxPool2d(3, 2),
            chain(64, (80, 1), (192, 3, 1)),
            nn.MaxPool2d(3, 2),
            a(192, 32),
            a(256, 64),
            a(288, 64),
            Branches(chain(288, (384, 3, 2)), chain(288, (64, 1), (96, 3), (96, 3, 2)), nn.MaxPool2d(3, 2)),
            c(768, 128),
            c(768, 160),
            c(768, 160),
            c(768, 192),
            Branches(
                chain(768, (192, 1), (320, 3, 2)),
                chain(768, (192, 1), (192, flat), (192, tall), (192, 3, 2)),
                nn.MaxPool2d(3, 2),
            ),
            e(1280),
            e(2048),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2048, out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.head.weight, std=0.1, a=-0.2, b=0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of images x (B, in_channels, H, W)."""
        return self.head(self.dropout(self.forward_features(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Means of the last maps (B, num_features)."""
        check_images(x, self.in_channels, smallest=75)
        return self.layers(x).mean((2, 3))
