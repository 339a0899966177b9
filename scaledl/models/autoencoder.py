"""Autoencoder: an image pressed through a narrow code and drawn again (Hinton & Salakhutdinov 2006)."""

from itertools import pairwise

from torch import Tensor, nn

from scaledl.layers.conv import NormName, check_images, make_norm2d
from scaledl.layers.precision import like_weights
from scaledl.models.mlp import ACTIVATIONS, GAINS, MLP, Activation, init_layer


class Down(nn.Module):
    """Convolution of stride 2 -> activation: maps of half the size."""

    def __init__(self, in_channels: int, out_channels: int, activation: Activation) -> None:
        super().__init__()
        self.gain = GAINS[activation]
        self.conv = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.activation = ACTIVATIONS[activation]()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_layer(self.conv, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.conv(x))


class Up(nn.Module):
    """Norm -> activation -> transposed convolution of stride 2: maps of twice the size (Radford et al. 2016)."""

    def __init__(
        self, in_channels: int, out_channels: int, activation: Activation, norm: NormName | None = None
    ) -> None:
        super().__init__()
        self.gain = GAINS[activation]
        self.norm = make_norm2d(norm or "none", in_channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # Each output reads 2x2 of the 4x4 weights of each input channel.
        nn.init.normal_(self.conv.weight, std=self.gain / (4 * self.conv.in_channels) ** 0.5)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.activation(self.norm(x)))


class Encoder(nn.Module):
    """Images (B, C, H, W) -> (B, out_dim): a `Down` for each of `channels`, then an MLP; without them an MLP."""

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        channels: list[int],
        hidden_dims: list[int],
        out_dim: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        size, widths = smallest_maps(image_size, channels), [in_channels, *channels]
        self.stages = nn.Sequential(*(Down(before, after, activation) for before, after in pairwise(widths)))
        self.head = MLP(widths[-1] * size**2, hidden_dims, out_dim, activation)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels)
        return self.head(self.stages(like_weights(x, self)))


class Decoder(nn.Module):
    """(B, in_dim) -> images (B, C, H, W): the encoder's way back, its lists read from behind.

    norm: before each `Up`; null: none.
    """

    def __init__(
        self,
        in_dim: int,
        in_channels: int,
        image_size: int,
        channels: list[int],
        hidden_dims: list[int],
        activation: Activation,
        norm: NormName | None = None,
    ) -> None:
        super().__init__()
        size, widths = smallest_maps(image_size, channels), [*reversed(channels), in_channels]
        self.maps = (widths[0], size, size)
        self.head = MLP(in_dim, list(reversed(hidden_dims)), widths[0] * size**2, activation)
        self.stages = nn.Sequential(*(Up(before, after, activation, norm) for before, after in pairwise(widths)))

    def forward(self, z: Tensor) -> Tensor:
        return self.stages(self.head(like_weights(z, self)).unflatten(1, self.maps))


class Autoencoder(nn.Module):
    """Encoder and decoder of codes z (B, latent_dim), convolutional, an MLP (channels=[]), or linear (no lists at all).

    A linear one with squared errors spans what the first latent_dim principal components span (Baldi & Hornik 1989).

    Args:
        in_channels, image_size: of the images, which are squares.
        channels: of the maps after each halving of the image.
        hidden_dims: of the MLP between these and the code.

    Raises:
        ValueError: the image cannot be halved so often, or x has other channels.
    """

    block_types = (Encoder, Decoder)
    entry_points = ("encode", "decode")

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        latent_dim: int,
        channels: list[int],
        hidden_dims: list[int],
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = Encoder(in_channels, image_size, channels, hidden_dims, latent_dim, activation)
        self.decoder = Decoder(latent_dim, in_channels, image_size, channels, hidden_dims, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) drawn again, before the squashing that the task's loss asks for."""
        return self.decoder(self.encoder(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def smallest_maps(image_size: int, channels: list[int]) -> int:
    """Height and width after a halving for each of `channels`.

    Raises:
        ValueError: it cannot be halved so often.
    """
    times = 2 ** len(channels)
    if image_size % times:
        raise ValueError(
            f"channels={list(channels)} halve the image {len(channels)} times, but image_size={image_size} is no "
            f"multiple of {times}; take fewer channels or images of another size (data.image_size)"
        )
    return image_size // times
