from typing import Any

import pytest
import torch

from scaledl.models.densenet import DenseLayer, DenseNet


@pytest.mark.parametrize(
    ("depths", "expected"),
    [([6, 12, 24, 16], 7_978_856), ([6, 12, 32, 32], 14_149_480), ([6, 12, 48, 32], 20_013_928)],
)
def test_counts(count, depths: list[int], expected: int) -> None:
    assert count("densenet121", in_channels=3, out_dim=1000, depths=depths) == expected


def test_densenet_121_is_timms(timm: Any, take_weights) -> None:
    theirs = timm.create_model("densenet121", num_classes=11).eval()
    ours = DenseNet(3, 11, depths=[6, 12, 24, 16]).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_a_layer_keeps_what_it_reads_and_adds_its_own() -> None:
    x = torch.randn(2, 6, 4, 4)
    y = DenseLayer(6, 3, 2, "batch", 0.0)(x)
    assert y.shape == (2, 9, 4, 4)
    assert torch.equal(y[:, :6], x)
    assert y[:, 6:].std() > 0


def test_blocks_grow_and_transitions_halve() -> None:
    model = DenseNet(1, 5, depths=[2, 3], growth_rate=4, stem="cifar")
    assert model.num_features == (8 + 2 * 4) // 2 + 3 * 4
    assert model.blocks(model.stem(torch.zeros(2, 1, 8, 8))).shape == (2, 20, 4, 4)


def test_sizes_below_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"depths=\[2, 0\], growth_rate=4.* 1 or more everywhere"):
        DenseNet(1, 5, depths=[2, 0], growth_rate=4)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), but the model was built for \(1, H, W\)"):
        DenseNet(1, 5, depths=[1], growth_rate=4)(torch.zeros(2, 3, 8, 8))
