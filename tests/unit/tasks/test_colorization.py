"""Colours less the light, and back."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.fcn import FCN
from scaledl.tasks.colorization import LIGHT, Colorization


class Knows(nn.Module):
    """Gives the colours of one batch."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        light = (x * torch.tensor(LIGHT)[:, None, None]).sum(1, keepdim=True)
        self.colours = torch.cat((x[:, 2:3] - light, x[:, 0:1] - light), dim=1)

    def forward(self, light: Tensor) -> Tensor:
        assert light.shape[1] == 1
        return self.colours


def make() -> Colorization:
    recipe = partial(FCN, in_channels=1, out_channels=2, image_size=8, channels=[8, 16])
    task = Colorization(ModelBuilder(recipe), partial(torch.optim.AdamW, lr=3e-3))
    task.configure_model()
    return task


def batch() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_who_knows_the_colours_paints_the_image() -> None:
    task, x = make(), batch()
    task.model = Knows(x)
    assert task.objective({"x": x})["loss"] < 1e-12
    torch.testing.assert_close(task.paint(x), x)


def test_gray_images_have_no_colours() -> None:
    gray = batch()[:, :1].expand(-1, 3, -1, -1)
    assert make().objective({"x": gray})["gray_loss"] < 1e-12
    with pytest.raises(ValueError, match="have no colours: take"):
        make().objective({"x": batch()[:, :1]})


def test_one_batch_is_learned() -> None:
    task, x = make(), batch().repeat_interleave(4, dim=3)[..., :8]
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-2)
    for _ in range(300):
        loss = task.objective({"x": x})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * task.objective({"x": x})["gray_loss"]
