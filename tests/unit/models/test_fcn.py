from functools import partial

import pytest
import torch

from scaledl.models.fcn import FCN

make = partial(FCN, in_channels=1, out_channels=2, image_size=16, channels=[8, 16, 32])


def test_every_pixel_gets_an_answer_and_the_image_its_features() -> None:
    model, x = make(), torch.randn(3, 1, 16, 16)
    assert model(x).shape == (3, 2, 16, 16)
    assert model.forward_features(x).shape == (3, model.num_features) == (3, 32)


def test_every_parameter_gets_a_gradient() -> None:
    model = make()
    model(torch.randn(2, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_finer_maps_take_part_beside_the_coarse_ones() -> None:
    model, x = make().eval(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        for up in model.up:
            up.conv.weight.zero_()
        assert not torch.equal(model(x), model(x + torch.randn_like(x)))


def test_an_image_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="halve the image 2 times, but image_size=6"):
        make(image_size=6)
