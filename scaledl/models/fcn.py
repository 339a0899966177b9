"""A fully convolutional network: an answer for every pixel, from maps of every size."""

from itertools import pairwise

from torch import Tensor, nn

from scaledl.layers.conv import check_images
from scaledl.layers.precision import like_weights
from scaledl.models.autoencoder import Down, Up, smallest_maps


class FCN(nn.Module):
    """Down to coarse maps and up again, each size adding what the way down saw of it (Long et al. 2015).

    Args:
        out_channels: of the answer for a pixel.
        image_size: of the images, which are squares.
        channels: of the maps of full size, then of those after each halving.

    Raises:
        ValueError: the image cannot be halved so often, or x has other channels.
    """

    block_types = (Down, Up)

    def __init__(self, in_channels: int, out_channels: int, image_size: int, channels: list[int]) -> None:
        super().__init__()
        smallest_maps(image_size, channels[1:])
        self.in_channels, self.num_features = in_channels, channels[-1]
        self.stem = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(Down(before, after, "relu") for before, after in pairwise(channels))
        self.up = nn.ModuleList(Up(before, after, "relu", "group") for before, after in pairwise(channels[::-1]))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(channels[0], out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        *finer, x = self._maps(x)
        for up, skip in zip(self.up, reversed(finer), strict=True):
            x = up(x) + skip
        return self.head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The mean of the coarsest maps (B, num_features)."""
        return self._maps(x)[-1].mean((2, 3))

    def _maps(self, x: Tensor) -> list[Tensor]:
        check_images(x, self.in_channels)
        maps = [self.stem(like_weights(x, self))]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps
