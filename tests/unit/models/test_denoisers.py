"""UNet and DiT: what they share, the transformer block's adaLN-zero, and their shapes."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.distributed.parallelize import ModelBuilder, blocks_of
from scaledl.layers.attention import Attention
from scaledl.layers.condition import TimeAndClass
from scaledl.layers.feedforward import FeedForward
from scaledl.layers.transformer import TransformerBlock
from scaledl.models.dit import DiT
from scaledl.models.unet import UNet

unet = partial(UNet, 2, 8, 10, [1, 2], [4], dim=16, num_blocks=1)
dit = partial(DiT, 2, 8, 10, dim=32, depth=2, num_heads=2)
MODELS = pytest.mark.parametrize("make", [unet, dit], ids=["unet", "dit"])


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, 8, 8, generator=generator), torch.rand(batch, generator=generator), torch.arange(batch)


def awake(make: Callable[[], nn.Module]) -> nn.Module:
    """With noise on all weights, for at first every branch adds zero."""
    model = ModelBuilder(make)()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@MODELS
def test_it_foretells_zero_at_first_and_a_gradient_reaches_every_parameter_later(make) -> None:
    x, t, y = inputs()
    assert torch.equal(ModelBuilder(make)()(x, t, y), torch.zeros_like(x))
    model = awake(make)
    model(x, t, y).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert name.endswith(".k.bias") or parameter.grad.abs().max() > 0, name


@MODELS
@torch.no_grad()
def test_it_depends_on_noise_time_and_class_of_each_sample_alone(make) -> None:
    model = awake(make)
    x, t, y = inputs()
    expected = model(x, t, y)
    torch.testing.assert_close(model(x[1:], t[1:], y[1:]), expected[1:], atol=1e-4, rtol=1e-4)
    for changed in ((x + 0.1, t, y), (x, 1 - t, y), (x, t, y + 1)):
        assert (model(*changed) - expected).flatten(1).abs().amax(1).min() > 1e-3


@MODELS
def test_without_classes_it_reads_no_labels(make) -> None:
    free = ModelBuilder(partial(make.func, 2, 8, None, *make.args[3:], **make.keywords))()
    x, t, y = inputs()
    assert free(x, t).shape == x.shape
    with pytest.raises(ValueError, match="num_classes=None reads no y"):
        free(x, t, y)
    with pytest.raises(ValueError, match="num_classes=10 needs y"):
        ModelBuilder(make)()(x, t)


@MODELS
@torch.no_grad()
def test_bf16_is_near_fp32(make) -> None:
    model = awake(make)
    x, t, y = inputs()
    expected = model(x, t, y)
    found = model.bfloat16()(x.bfloat16(), t, y)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.05


@MODELS
def test_recomputed_blocks_give_the_same_gradients(make) -> None:
    gradients = []
    for checkpointing in ("none", "full"):
        model = ModelBuilder(make, activation_checkpointing=checkpointing)()
        model(*inputs())[0].sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_sharded_as_one() -> None:
    assert len(blocks_of(unet())) == 2 + 2 + 4  # down, middle, and one more at each size on the way up
    assert len(blocks_of(dit())) == 2


@torch.no_grad()
def test_the_block_is_modulated_as_in_the_paper() -> None:
    block = TransformerBlock(16, Attention(16, 2), FeedForward(16), condition_dim=8)
    x, condition = torch.randn(2, 5, 16), torch.randn(2, 8)
    assert torch.equal(block(x, condition=condition), x)  # the zero in adaLN-zero
    nn.init.normal_(block.modulation.weight)
    shift, scale, gate, shift2, scale2, gate2 = block.modulation(F.silu(condition))[:, None].chunk(6, dim=2)
    h = x + gate * block.attention(F.layer_norm(x, (16,)) * (1 + scale) + shift)
    h = h + gate2 * block.feedforward(F.layer_norm(h, (16,)) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, condition=condition), h)
    with pytest.raises(ValueError, match="condition_dim=8 modulates a pre-norm block"):
        TransformerBlock(16, Attention(16, 2), FeedForward(16), condition_dim=8, pre_norm=False)


@torch.no_grad()
def test_dit_puts_patches_where_they_come_from() -> None:
    """With a head that hands on the patch embedding, itself the patch, the image comes out again."""
    model = ModelBuilder(partial(DiT, 1, 8, None, dim=4, depth=0, num_heads=1))()
    nn.init.eye_(model.head.weight)
    model.norm = nn.Identity()
    model.patch_embedding.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
    x = torch.randn(2, 1, 8, 8)
    positions = model(torch.zeros_like(x), torch.zeros(2))
    torch.testing.assert_close(model(x, torch.zeros(2)) - positions, x)
    assert len(model._positions(x.device).unique(dim=0)) == 16


def test_published_size_of_dit_xl_2() -> None:
    """675 M (table 1) of latents of 4 channels, whose noise's variance the paper's model foretells too: 8 outputs."""
    with torch.device("meta"):
        model = DiT(4, 32, 1000, dim=1152, depth=28, num_heads=16)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(675, abs=1.5)


@torch.no_grad()
def test_time_is_told_by_sinusoids_and_class_by_a_table() -> None:
    layer = TimeAndClass(8, 3)
    nn.init.eye_(layer.up.weight), nn.init.eye_(layer.down.weight)
    nn.init.zeros_(layer.up.bias), nn.init.zeros_(layer.down.bias)
    found = layer(torch.tensor([0.25]), torch.tensor([3]), torch.float32)
    angles = 250 * 10_000.0 ** -(torch.arange(4) / 4)
    expected = F.silu(torch.cat((angles.sin(), angles.cos()))) + layer.classes.weight[3]
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size=6 cannot be halved 2 times"):
        UNet(1, 6, None, [1, 1, 1], [])
    with pytest.raises(ValueError, match=r"attention_sizes=\[5\]: the maps have the sizes \[8, 4\]"):
        UNet(1, 8, None, [1, 1], [5])
    with pytest.raises(ValueError, match="image_size=8 is not divisible by patch_size=3"):
        DiT(1, 8, None, patch_size=3)
    with pytest.raises(ValueError, match="dim=6 is not divisible by 4"):
        DiT(1, 8, None, dim=6)
    with pytest.raises(ValueError, match=r"images of shape \(1, 8, 8\)"):
        dit()(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
