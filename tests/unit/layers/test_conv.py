import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scaledl.layers.conv import (
    CBAM,
    ConvNorm,
    EfficientChannelAttention,
    NonLocal,
    SqueezeExcite,
    init_conv,
    make_attention,
    make_norm2d,
)


@pytest.fixture
def timm_layers() -> Any:
    return pytest.importorskip("timm.layers", reason="timm, an optional reference, is not installed")


def copy(theirs: nn.Module, ours: nn.Module) -> None:
    with torch.no_grad():
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.copy_(other)


def test_a_unit_is_a_convolution_a_norm_and_an_activation() -> None:
    unit = ConvNorm(4, 6, (1, 5), 2, groups=2, norm="group", activation="silu")
    x = torch.randn(2, 4, 9, 9)
    y = F.conv2d(x, unit.conv.weight, stride=2, padding=(0, 2), groups=2)
    torch.testing.assert_close(unit(x), F.silu(F.group_norm(y, 1)))
    assert [name for name, _ in unit.named_parameters()] == ["conv.weight", "norm.weight", "norm.bias"]
    bare = ConvNorm(4, 6, 3, padding=0, norm="none", activation="none")
    torch.testing.assert_close(bare(x), F.conv2d(x, bare.conv.weight))


def test_initial_weights() -> None:
    conv = nn.Conv2d(64, 128, 3, groups=4)
    init_conv(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 / 4 * 9)), rel=0.02)
    assert not conv.bias.any()
    init_conv(conv, 0.1)
    assert conv.weight.abs().max() <= 0.2
    assert conv.weight.std().item() == pytest.approx(0.088, rel=0.02)  # of a normal cut at 2 std


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (5, 1), (6, 1), (8, 4), (24, 4), (64, 32), (96, 16), (512, 32)]
)
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    assert make_norm2d("group", channels).num_groups == groups
    assert make_norm2d("layer", channels).num_groups == 1
    assert make_norm2d("sync_batch", channels, 1e-3).eps == 1e-3


def test_squeeze_excite_scales_channels_by_what_their_means_say() -> None:
    layer = SqueezeExcite(4, 2)
    x = torch.randn(3, 4, 5, 6)
    means = x.mean((2, 3))
    hidden = F.relu(F.linear(means, layer.reduce.weight.flatten(1), layer.reduce.bias))
    scale = torch.sigmoid(F.linear(hidden, layer.expand.weight.flatten(1), layer.expand.bias))
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


@pytest.mark.parametrize(
    ("channels", "kernel_size"), [(8, 3), (16, 3), (64, 3), (128, 5), (256, 5), (512, 5), (2048, 7)]
)
def test_eca_sees_more_neighbours_among_more_channels(channels: int, kernel_size: int) -> None:
    """Equation 12 of the paper, with γ = 2 and b = 1; 64 channels stand in its table 1 with 3, 512 with 5."""
    layer = EfficientChannelAttention(channels)
    assert layer.conv.kernel_size == (kernel_size,)
    x = torch.randn(2, channels, 3, 3)
    padded = F.pad(x.mean((2, 3)), (kernel_size // 2,) * 2).unfold(1, kernel_size, 1)  # (B, C, k)
    scale = torch.sigmoid(padded @ layer.conv.weight[0, 0])
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


def test_cbam_is_its_two_equations() -> None:
    layer, x = CBAM(4, 2), torch.randn(2, 4, 9, 9)
    reduce, expand = layer.channel.reduce.weight.flatten(1), layer.channel.expand.weight.flatten(1)
    mlp = [F.relu(pooled @ reduce.T) @ expand.T for pooled in (x.mean((2, 3)), x.amax((2, 3)))]
    y = x * torch.sigmoid(mlp[0] + mlp[1])[:, :, None, None]
    pooled = torch.stack([y.mean(1), y.amax(1)], 1)
    places = torch.sigmoid(F.conv2d(pooled, layer.spatial.conv.weight, layer.spatial.conv.bias, padding=3))
    torch.testing.assert_close(layer(x), y * places)
    torch.testing.assert_close(layer.spatial.attention_map(y), places[:, 0])


def test_non_local_is_attention_between_places_and_begins_as_the_identity() -> None:
    layer, x = NonLocal(6).eval(), torch.randn(2, 6, 3, 4)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    places = x.flatten(2)  # (B, C, HW)
    k = (layer.key.weight.flatten(1) @ places).transpose(1, 2)
    q, v = (
        (conv.weight.flatten(1) @ places + conv.bias[:, None]).transpose(1, 2) for conv in (layer.query, layer.value)
    )
    weights = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(3), -1)
    added = layer.out.conv.weight.flatten(1) @ (weights @ v).transpose(1, 2) / math.sqrt(1 + 1e-5)
    added = added * layer.out.norm.weight[:, None] + layer.out.norm.bias[:, None]
    torch.testing.assert_close(layer(x), x + added.reshape(x.shape))
    torch.testing.assert_close(layer.attention_map(x), weights.mean(1).reshape(2, 3, 4))


@pytest.mark.parametrize("name", ["se", "eca", "cbam", "non_local"])
def test_attention_layers_are_timms(timm_layers: Any, name: str) -> None:
    theirs = {
        "se": lambda: timm_layers.SEModule(32, rd_channels=4),
        "eca": lambda: timm_layers.EcaModule(32),
        "cbam": lambda: timm_layers.create_attn("cbam", 32, rd_channels=4),
        "non_local": lambda: timm_layers.NonLocalAttn(32, rd_channels=16),
    }[name]()
    theirs.eval()
    x = torch.randn(2, 32, 7, 7)
    if name == "non_local":
        ours: nn.Module = NonLocal(32).eval()
        theirs.scale = 16**-0.5  # of the keys' width, not of the block's
        with torch.no_grad():
            theirs.z.bias.zero_()  # the norm has one
            theirs.norm.weight.fill_(1.5)
            ours.key.weight.copy_(theirs.p.weight)
            pairs = [(ours.query, theirs.t), (ours.value, theirs.g), (ours.out.norm, theirs.norm)]
            for mine, its in pairs:
                copy(its, mine)
            ours.out.conv.weight.copy_(theirs.z.weight)
    else:
        ours = make_attention(name, 32, 8)
        if name == "cbam":  # its norm over the spatial map, which the paper has not, becomes the identity
            theirs.spatial.conv.bn.weight.data.fill_(math.sqrt(1 + theirs.spatial.conv.bn.eps))
            with torch.no_grad():
                theirs.spatial.conv.bn.bias.fill_(0.3)
                ours.spatial.conv.bias.fill_(0.3)
                ours.spatial.conv.weight.copy_(theirs.spatial.conv.conv.weight)
            copy(theirs.channel, ours.channel)
        else:
            copy(theirs, ours)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
