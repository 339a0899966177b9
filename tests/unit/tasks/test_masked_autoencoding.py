from functools import partial

import pytest
import torch
from torch import Tensor

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mae import MAE
from scaledl.tasks.masked_autoencoding import MaskedAutoencoding

SIZES = {"dim": 16, "depth": 1, "num_heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def make(**settings: object) -> MaskedAutoencoding:
    builder = ModelBuilder(partial(MAE, 1, 8, 2, **SIZES, init_std=0.1))
    task = MaskedAutoencoding(builder, partial(torch.optim.AdamW, lr=1e-2), **settings)
    task.configure_model()
    task.noise = Noise(0, torch.arange(4))
    return task


def batch() -> dict[str, Tensor]:
    return {"x": torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_loss_is_of_hidden_patches_only(norm_pix_loss: bool) -> None:
    task, x = make(mask_ratio=0.75, norm_pix_loss=norm_pix_loss), batch()["x"]
    order, num_kept = task.hide(task.noise)
    assert num_kept == 4
    painted = task.model(x, order, num_kept)
    errors = []
    for i in range(4):
        for patch in order[i, num_kept:].tolist():
            row, column = divmod(patch, 4)
            pixels = x[i, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten()
            if norm_pix_loss:
                pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            errors.append((painted[i, patch] - pixels).square().mean())
    torch.testing.assert_close(task.objective(batch())["loss"], torch.stack(errors).mean())


@pytest.mark.parametrize(("mask_ratio", "num_kept"), [(0.01, 15), (0.6, 6), (0.99, 1)])
def test_something_is_hidden_and_something_is_shown(mask_ratio: float, num_kept: int) -> None:
    assert make(mask_ratio=mask_ratio).hide(Noise(0, torch.arange(2)))[1] == num_kept


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_painting_leaves_what_is_shown(norm_pix_loss: bool) -> None:
    task, x = make(mask_ratio=0.5, norm_pix_loss=norm_pix_loss), batch()["x"]
    masked, painted = task.paint(x, task.noise)
    shown = ~masked.isnan()
    assert shown.float().mean() == 0.5
    assert torch.equal(masked[shown], x[shown])
    assert torch.equal(painted[shown], x[shown])
    assert (painted - x)[~shown].abs().min() > 0


def test_it_overfits_one_batch() -> None:
    task = make(mask_ratio=0.5)
    optimizer = task.configure_optimizers()["optimizer"]
    first = task.objective(batch())["loss"]
    for _ in range(150):
        loss = task.objective(batch())["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * first


@pytest.mark.parametrize("mask_ratio", [0.0, 1.0])
def test_a_ratio_that_hides_nothing_or_all_is_refused(mask_ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"mask_ratio={mask_ratio} must lie in \(0, 1\)"):
        make(mask_ratio=mask_ratio)
