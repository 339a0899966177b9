from typing import Any

import pytest
import torch
from torch import nn

from scaledl.models.inception import Branches, GoogLeNet, InceptionV3


def test_counts(count) -> None:
    assert count("inception_v3", in_channels=3, out_dim=1000) == 23_834_568
    assert count("googlenet", in_channels=3, out_dim=1000) == 6_624_904


def test_inception_v3_is_timms(timm: Any, take_weights) -> None:
    theirs = timm.create_model("inception_v3", num_classes=11, aux_logits=False).eval()
    ours = InceptionV3(3, 11).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_googlenet_is_torchvisions(torchvision: Any, take_weights) -> None:
    theirs = torchvision.models.googlenet(num_classes=11, aux_logits=False, init_weights=False).eval()
    ours = GoogLeNet(3, 11).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 80)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_branches_stand_side_by_side() -> None:
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Branches(nn.Identity(), nn.ReLU())(x), torch.cat([x, x.relu()], 1))


def test_images_that_are_too_small_are_refused() -> None:
    with torch.device("meta"):
        model = InceptionV3(3, 5)
        assert model(torch.zeros(2, 3, 75, 75)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"shape \(3, 75, 74\), .* with H and W of 75 or more: .* take larger"):
            model(torch.zeros(2, 3, 75, 74))
