from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import pytest
import torch

from scaledl.callbacks import reconstructions
from scaledl.callbacks.latent_space import LatentSpace, walks
from scaledl.callbacks.reconstructions import Reconstructions
from scaledl.data.digits import Digits
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.autoencoder import Autoencoder
from scaledl.models.vae import VAE
from scaledl.tasks.autoencoding import Autoencoding
from scaledl.tasks.vae import ELBO
from tests.unit.callbacks.test_pictures import assert_is_a_picture

Fit = Callable[..., pl.Trainer]
ADAM = partial(torch.optim.Adam, lr=1e-2)


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_an_autoencoder_shows_what_it_does(fit: Fit, tmp_path: Path, latent_dim: int) -> None:
    task = ELBO(ModelBuilder(partial(VAE, 1, 8, latent_dim, [8], [])), ADAM)
    fit(Reconstructions(5), LatentSpace(50, 2, 4), max_steps=2, task=task, data=Digits(16, 16))
    assert task.training
    assert_is_a_picture(tmp_path / "plots" / "latent.png")
    assert matplotlib.image.imread(tmp_path / "plots" / "reconstructions.png").shape[0] > 100


@pytest.mark.parametrize(
    ("noise_std", "rows"), [(0.0, ["images", "drawn again"]), (0.5, ["images", "spoilt", "drawn"])]
)
def test_a_denoising_autoencoder_shows_what_it_is_shown(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, noise_std: float, rows: list[str]
) -> None:
    drawn: list = []
    monkeypatch.setattr(reconstructions, "save", lambda figure, run_dir, name: drawn.append(figure))
    task = Autoencoding(ModelBuilder(partial(Autoencoder, 1, 8, 2, [], [])), ADAM, noise_std=noise_std)
    fit(Reconstructions(4), max_steps=1, task=task, data=Digits(16, 16))
    assert [axes.get_title() for axes in drawn[0].axes] == rows
    first = torch.as_tensor(drawn[0].axes[0].images[0].get_array())[1:9, 1:9]
    images = task.trainer.datamodule.split("test").x[:4]
    torch.testing.assert_close(first, (images[0, 0] - images.min()) / (images.max() - images.min()))


def test_a_walk_moves_one_number_at_a_time_through_where_codes_lie() -> None:
    z = torch.randn(500, 3) * torch.tensor([0.1, 2.0, 1.0]) + torch.tensor([0.0, 5.0, 0.0])
    walk, dims = walks(z, 2, 7)
    assert dims == [1, 2]
    torch.testing.assert_close(walk[0, :, [0, 2]], z[0, [0, 2]].repeat(7, 1))
    torch.testing.assert_close(walk[0, [0, 3, 6], 1], z.mean(0)[1] + z.std(0)[1] * torch.tensor([-3.0, 0.0, 3.0]))
    torch.testing.assert_close(walk[1, :, 1], z[0, 1].repeat(7))
