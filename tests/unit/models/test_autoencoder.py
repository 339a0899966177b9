import pytest
import torch
from torch import Tensor, nn

from scaledl.models.autoencoder import Autoencoder
from scaledl.models.gan import GAN
from scaledl.models.vae import VAE

SHAPES = [([], []), ([], [32]), ([8], []), ([8, 16], [32])]


def images(size: int = 8, channels: int = 3) -> Tensor:
    return torch.rand(5, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("channels", "hidden_dims"), SHAPES)
def test_images_come_back_in_their_own_shape(channels: list[int], hidden_dims: list[int]) -> None:
    x = images()
    model = Autoencoder(3, 8, 4, channels, hidden_dims)
    assert model.encode(x).shape == (5, 4)
    torch.testing.assert_close(model(x), model.decode(model.encode(x)))
    assert model(x).shape == x.shape
    variational = VAE(3, 8, 4, channels, hidden_dims)
    eps = torch.randn(5, 4)
    out, mu, logvar = variational(x, eps)
    torch.testing.assert_close(out, variational.decode(mu + logvar.exp().sqrt() * eps))
    assert out.shape == x.shape


def test_without_lists_it_is_linear() -> None:
    model, x = Autoencoder(1, 4, 2, [], []), images(4, 1)
    middle = model((x[:1] + x[1:2]) / 2)
    torch.testing.assert_close(middle, (model(x[:1]) + model(x[1:2])) / 2)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("spectral_norm", [True, False])
def test_a_gan_draws_and_scores(num_classes: int, spectral_norm: bool) -> None:
    model = GAN(3, 8, 4, [8, 8], [8, 16], num_classes, spectral_norm=spectral_norm)
    x, z, y = images(), torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])
    drawn, of_real, of_twin, of_drawn = model(x, z, y)
    assert drawn.shape == x.shape
    assert 0 <= drawn.min() <= drawn.max() <= 1
    assert of_real.shape == of_drawn.shape == (5,)
    torch.testing.assert_close(of_twin, of_drawn)
    model.eval()
    torch.testing.assert_close(model.discriminate(model.generate(z, y), y), model(x, z, y)[3])
    other = model.generate(z, (y + 1) % 3)
    assert torch.equal(other, model.generate(z, y)) == (num_classes == 0)
    (of_real.sum() + 2 * of_drawn.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_spectrally_normed_discriminator_bounds_how_fast_scores_change() -> None:
    model = GAN(1, 8, 4, [8], [8, 8], 0).train()
    x, other, y = images(8, 1), images(8, 1).flip(0), torch.zeros(5, dtype=torch.int64)
    for _ in range(50):
        model.discriminate(x, y)
    model.eval()
    change = (model.discriminate(x, y) - model.discriminate(other, y)).abs()
    # A 3x3 convolution of matrix norm 1 stretches by at most 3, a 4x4 one of stride 2 by 2.
    assert (change <= 36 * (x - other).flatten(1).norm(dim=1) + 1e-6).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda channels: Autoencoder(1, 28, 4, channels, []),
        lambda channels: VAE(1, 28, 4, channels, []),
        lambda channels: GAN(1, 28, 4, [8], channels, 0),
    ],
)
def test_an_image_that_cannot_be_halved_so_often_is_refused(make) -> None:
    make([8, 8])
    with pytest.raises(ValueError, match="image_size=28 is no multiple of 8; take fewer channels"):
        make([8, 8, 8])


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="make in_channels that of the data"):
        Autoencoder(3, 8, 4, [8], [])(images(8, 1))


def test_initial_weights_keep_the_size_of_a_signal() -> None:
    torch.manual_seed(0)
    model = Autoencoder(8, 32, 512, [32, 64], [])
    x = torch.randn(64, 8, 32, 32)
    assert 0.5 < model.encode(x).std() < 2
    assert 0.5 < model.decode(torch.randn(64, 512)).std() < 2


def test_blocks_hold_all_parameters() -> None:
    for model in (Autoencoder(1, 8, 2, [4], [4]), VAE(1, 8, 2, [4], [4]), GAN(1, 8, 2, [4], [4], 3)):
        inside: list[nn.Parameter] = []
        for block in model.modules():
            if isinstance(block, model.block_types):
                inside += block.parameters()
        assert len({*inside}) == len(list(model.parameters()))
