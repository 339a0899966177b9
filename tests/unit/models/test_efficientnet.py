from typing import Any

import pytest
import torch
from torch import nn

from scaledl.models.efficientnet import EfficientNet, MBConv

B0 = [[1, 16, 1, 1, 3], [6, 24, 2, 2, 3], [6, 40, 2, 2, 5], [6, 80, 3, 2, 3]]
B0 += [[6, 112, 3, 1, 5], [6, 192, 4, 2, 5], [6, 320, 1, 1, 3]]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("efficientnet_b0", {}, 5_288_548),
        ("efficientnet_b0", {"depth_mult": 1.1}, 7_794_184),
        ("efficientnet_b0", {"width_mult": 2.0, "depth_mult": 3.1}, 66_347_960),
        ("efficientnet_v2_s", {}, 21_458_488),
        ("mobilenet_v2", {}, 3_504_872),
    ],
)
def test_counts(count, name: str, changes: dict[str, Any], expected: int) -> None:
    assert count(name, in_channels=3, out_dim=1000, **changes) == expected


def test_efficientnet_b0_is_transformers_own(take_weights) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference")
    # Their B0: padded by half the kernel everywhere, as in PyTorch, where TensorFlow pads right and below.
    config = transformers.EfficientNetConfig(
        width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=11, depthwise_padding=list(range(16))
    )
    theirs = transformers.EfficientNetForImageClassification(config).eval()
    theirs.efficientnet.embeddings.padding = nn.ZeroPad2d(1)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # they leave it out in the first norm of a block
    ours = EfficientNet(3, 11, stages=B0).eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_v2_s"])
def test_other_stage_tables_are_torchvisions(torchvision: Any, take_weights, from_yaml, name: str) -> None:
    theirs = getattr(torchvision.models, name)(num_classes=11).eval()
    ours = from_yaml(name, in_channels=3, out_dim=11, norm="batch").eval()
    take_weights(ours, theirs)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def block(in_channels: int, out_channels: int, stride: int, path_dropout: float = 0.0) -> MBConv:
    return MBConv(
        in_channels,
        out_channels,
        4,
        3,
        stride,
        fused=False,
        se_ratio=0.25,
        activation="silu",
        norm="batch",
        norm_eps=1e-3,
        path_dropout=path_dropout,
    )


def test_a_block_is_added_to_its_input_only_where_shapes_agree() -> None:
    x = torch.randn(2, 4, 6, 6)
    for agrees, one in [(True, block(4, 4, 1)), (False, block(4, 4, 2)), (False, block(4, 6, 1))]:
        difference = one(x)[:, :4, :3, :3] - one.layers(x)[:, :4, :3, :3]
        assert torch.allclose(difference, x[:, :, :3, :3] if agrees else torch.zeros(()), atol=1e-5)
    assert torch.equal(block(4, 4, 1, path_dropout=0.9999999)(x), x)


@pytest.mark.parametrize("row", [[1, 16, 1, 1], [1, 16, 1, 0, 3]])
def test_stages_that_cannot_be_are_refused(row: list[int]) -> None:
    with pytest.raises(ValueError, match=r"stages\[1\]=\[.*\]: a stage is five numbers of 1 or more, \[expand_ratio"):
        EfficientNet(3, 11, stages=[B0[0], row])


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), but the model was built for \(3, H, W\)"):
        EfficientNet(3, 11, stages=[B0[0]])(torch.zeros(2, 1, 8, 8))
