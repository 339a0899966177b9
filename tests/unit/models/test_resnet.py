from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.layers.conv import NonLocal
from scaledl.models.resnet import ResidualBlock, ResNet

SMALL: dict[str, Any] = {"in_channels": 3, "out_dim": 5, "depths": [1, 2], "dims": [8, 16], "stem": "cifar"}


def make(**changes: Any) -> ResNet:
    return ModelBuilder(partial(ResNet, **{**SMALL, **changes}), seed=0)()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("resnet50", {"depths": [3, 4, 23, 3]}, 44_549_160),
        ("resnet50", {"depths": [3, 8, 36, 3]}, 60_192_808),
        ("resnet50", {"pre_activation": True}, 25_549_352),
        ("resnet50", {"groups": 32, "base_width": 4}, 25_028_904),
        ("resnet50", {"base_width": 128}, 68_883_240),
        ("resnet50", {"attention": "se"}, 28_088_024),  # timm's seresnet50
    ],
)
def test_counts_for_imagenet(count, name: str, changes: dict[str, Any], expected: int) -> None:
    assert count(name, in_channels=3, out_dim=1000, **changes) == expected


@pytest.mark.parametrize(("n", "expected"), [(3, 269_722), (5, 464_154), (7, 658_586), (9, 853_018), (18, 1_727_962)])
def test_counts_for_cifar(count, n: int, expected: int) -> None:
    assert count("resnet20", in_channels=3, out_dim=10, depths=[n, n, n]) == expected


@pytest.mark.parametrize(
    ("block", "depths", "widths"),
    [("basic", [2, 2, 2, 2], [64, 128, 256, 512]), ("bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048])],
)
def test_outputs_are_those_of_transformers(take_weights, block: str, depths: list[int], widths: list[int]) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference")
    config = transformers.ResNetConfig(layer_type=block, depths=depths, hidden_sizes=widths, num_labels=11)
    theirs = transformers.ResNetForImageClassification(config).eval()
    ours = ResNet(3, 11, depths=depths, dims=[64, 128, 256, 512], block=block).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)


def test_a_pre_activation_bottleneck_is_the_papers_chain_of_layers() -> None:
    block = ResidualBlock(4, [(6, 1, 1, 1), (6, 3, 2, 2), (8, 1, 1, 1)], pre_activation=True).eval()
    norms = [block.norm, block.layers[0].norm, block.layers[1].norm]
    with torch.no_grad():
        for norm in norms:
            norm.bias.uniform_(-1, 1)
    x = torch.randn(2, 4, 6, 6)
    first = norms[0](x).relu()
    y = nn.functional.conv2d(first, block.layers[0].conv.weight)
    y = nn.functional.conv2d(norms[1](y).relu(), block.layers[1].conv.weight, stride=2, padding=1, groups=2)
    y = nn.functional.conv2d(norms[2](y).relu(), block.layers[2].conv.weight)
    expected = y + nn.functional.conv2d(first, block.shortcut.conv.weight, stride=2)
    torch.testing.assert_close(block(x), expected)
    assert expected.min() < 0  # nothing is cut off after the sum


def test_a_padded_shortcut_takes_every_second_place_and_adds_channels_of_zeros() -> None:
    block = ResidualBlock(2, [(6, 3, 2, 1), (6, 3, 1, 1)], shortcut="pad", zero_init=True)
    x = torch.rand(1, 2, 5, 5)
    expected = torch.zeros(1, 6, 3, 3)
    expected[:, 2:4] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


@pytest.mark.parametrize("pre_activation", [False, True])
def test_blocks_that_begin_as_the_identity(pre_activation: bool) -> None:
    model = make(zero_init_residual=True, pre_activation=pre_activation, attention="cbam", non_local=[1])
    x = torch.rand(4, 16, 4, 4)
    assert torch.equal(model.stages[1][2](x), x)  # x is positive, so that the last relu keeps it
    assert isinstance(model.stages[1][1], NonLocal)
    assert torch.equal(model.stages[1][1](x), x)


def test_kernels_begin_with_the_variance_of_their_fan_out() -> None:
    model = make(dims=[64, 128])
    weight = model.stages[1][0].layers[0].conv.weight  # 64 -> 128, 3x3
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_more_of_a_branch_is_left_out_from_block_to_block() -> None:
    rates = [m.p for m in make(depths=[2, 3], path_dropout=0.4).modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": [8]}, r"depths=\[1, 2\], dims=\[8\]: give one number of 1 or more for each stage"),
        ({"depths": [], "dims": []}, "for each stage"),
        ({"depths": [1, 0]}, "1 or more"),
        ({"groups": 2}, "groups=2, base_width=64 are of bottlenecks: set block to bottleneck"),
        ({"non_local": [2]}, r"non_local=\[2\]: name stages, from 0 to 1"),
        ({"dims": [16, 8], "shortcut": "pad"}, r"dims=\[16, 8\] shrink, .* take shortcut=projection"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**{**SMALL, **changes})


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), but the model was built for \(3, H, W\): make in_chan"):
        make()(torch.zeros(2, 1, 8, 8))
