"""A generator that draws, and a discriminator that tells drawn images from real ones (Goodfellow et al. 2014)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.conv import NormName
from scaledl.layers.spectral import SpectralConv2d, SpectralLinear
from scaledl.models.autoencoder import Decoder, smallest_maps

OutActivation = Literal["sigmoid", "tanh", "none"]
_OUT: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "none": nn.Identity}


class Generator(nn.Module):
    """Noise z (B, latent_dim), and a class that is put beside it, through transposed convolutions to an image.

    As in DCGAN (Radford et al. 2016), but with norms that take their statistics from one image.
    """

    def __init__(
        self,
        latent_dim: int,
        in_channels: int,
        image_size: int,
        channels: list[int],
        num_classes: int,
        norm: NormName,
        out: OutActivation,
    ) -> None:
        super().__init__()
        self.num_classes, self.out = num_classes, _OUT[out]()
        self.decoder = Decoder(latent_dim + num_classes, in_channels, image_size, channels, [], "relu", norm)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        if self.num_classes:
            z = torch.cat([z, F.one_hot(y, self.num_classes).to(z.dtype)], dim=1)
        return self.out(self.decoder(z))


class Discriminator(nn.Module):
    """Two convolutions for each halving of the image, then a score (B,); a class adds its product with the features.

    (The projection discriminator, Miyato & Koyama 2018.) It looks at each image alone, which the fused step of
    tasks/gan.py asks for: no norm over the batch.
    """

    def __init__(
        self, in_channels: int, image_size: int, channels: list[int], num_classes: int, spectral_norm: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        conv: type[nn.Conv2d] = SpectralConv2d if spectral_norm else nn.Conv2d
        linear: type[nn.Linear] = SpectralLinear if spectral_norm else nn.Linear
        layers: list[nn.Module] = []
        before = in_channels
        for after in channels:
            layers += [conv(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
            layers += [conv(after, after, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
            before = after
        self.stages = nn.Sequential(*layers, nn.Flatten())
        num_features = before * smallest_maps(image_size, channels) ** 2
        self.head = linear(num_features, 1)
        if num_classes:
            self.projection = linear(num_classes, num_features, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = self.stages(x)  # (B, num_features)
        score = self.head(features).squeeze(1)
        if self.num_classes:
            score = score + (self.projection(F.one_hot(y, self.num_classes).to(features.dtype)) * features).sum(1)
        return score


class GAN(nn.Module):
    """Generator and discriminator as one model, so that any strategy can train them.

    Args:
        in_channels, image_size: of the images, which are squares.
        latent_dim: of the noise z.
        generator_channels: of its maps, largest maps first.
        discriminator_channels: after each halving of the image.
        num_classes: that both are told; 0: none (an unconditional GAN).
        norm: of the generator (see `make_norm2d`).
        spectral_norm: of all layers of the discriminator.
        out: brings the drawn values to the range of the data: [0, 1], [-1, 1] or any.

    Raises:
        ValueError: the image cannot be halved so often.
    """

    block_types = (Generator, Discriminator)
    entry_points = ("generate", "discriminate")

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        latent_dim: int,
        generator_channels: list[int],
        discriminator_channels: list[int],
        num_classes: int = 0,
        norm: NormName = "group",
        spectral_norm: bool = True,
        out: OutActivation = "sigmoid",
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.generator = Generator(latent_dim, in_channels, image_size, generator_channels, num_classes, norm, out)
        self.discriminator = Discriminator(in_channels, image_size, discriminator_channels, num_classes, spectral_norm)

    def forward(self, x: Tensor, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images drawn from z for classes y, and the scores (B,) of real x, of drawn ones cut off from the generator,
        and of drawn ones; in one pass of the discriminator."""
        drawn = self.generator(z, y)
        scores = self.discriminator(torch.cat([x.to(drawn.dtype), drawn.detach(), drawn]), y.repeat(3))
        of_real, of_twin, of_drawn = scores.chunk(3)
        return drawn, of_real, of_twin, of_drawn

    def generate(self, z: Tensor, y: Tensor) -> Tensor:
        return self.generator(z, y)

    def discriminate(self, x: Tensor, y: Tensor) -> Tensor:
        return self.discriminator(x, y)
