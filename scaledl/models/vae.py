"""Variational autoencoder: codes are Gaussians, so that new ones can be drawn (Kingma & Welling 2014)."""

from torch import Tensor, nn

from scaledl.models.autoencoder import Decoder, Encoder
from scaledl.models.mlp import Activation


class VAE(nn.Module):
    """Encoder to mu and logvar of z (B, latent_dim), decoder of z; networks and arguments as in `Autoencoder`.

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
        self.encoder = Encoder(in_channels, image_size, channels, hidden_dims, 2 * latent_dim, activation)
        self.decoder = Decoder(latent_dim, in_channels, image_size, channels, hidden_dims, activation)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images x drawn again from z = mu + sigma · eps, with eps (B, latent_dim) from N(0, 1); mu and logvar."""
        mu, logvar = self.encode(x)
        return self.decoder(mu + (logvar / 2).exp() * eps.to(mu.dtype)), mu, logvar

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)
