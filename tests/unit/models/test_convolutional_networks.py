"""What holds for every convolutional network of blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.convnext import ConvNeXt
from scaledl.models.densenet import DenseNet
from scaledl.models.efficientnet import EfficientNet
from scaledl.models.inception import GoogLeNet, InceptionV3
from scaledl.models.resnet import ResNet

RESNET = partial(ResNet, 3, 5, depths=[1, 2], dims=[8, 16], stem="cifar")
EFFICIENTNET = partial(
    EfficientNet,
    3,
    5,
    stages=[[1, 8, 1, 1, 3], [2, 8, 2, 2, 5]],
    stem_dim=8,
    head_dim=16,
    path_dropout=0.0,
    dropout=0.0,
)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": RESNET,
    "imagenet stem": partial(RESNET, stem="imagenet"),
    "padded shortcuts": partial(RESNET, shortcut="pad"),
    "bottleneck": partial(RESNET, block="bottleneck", groups=2, base_width=32),
    "pre-activation": partial(RESNET, pre_activation=True, block="bottleneck"),
    "se": partial(RESNET, attention="se", attention_reduction=2),
    "eca": partial(RESNET, attention="eca"),
    "cbam": partial(RESNET, attention="cbam", attention_reduction=4),
    "non-local": partial(RESNET, non_local=[1]),
    "densenet": partial(DenseNet, 3, 5, depths=[2, 2], growth_rate=4, stem="cifar"),
    "efficientnet": EFFICIENTNET,
    "fused": partial(EFFICIENTNET, fused_stages=1),
    "convnext": partial(ConvNeXt, 3, 5, depths=[1, 1], dims=[8, 16], patch_size=2, layer_scale=0.1),
}
NORMS = ["batch", "sync_batch", "group", "layer"]


def make(model: str, **changes: Any) -> nn.Module:
    return ModelBuilder(partial(MODELS[model], **changes), seed=0)()


def images(batch: int = 4, size: int = 16) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def move_gains(model: nn.Module) -> None:
    """Let what begins as the identity take part."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "gain")):
                parameter.uniform_(0.5, 1.5)


@pytest.mark.parametrize("model", MODELS)
def test_shapes(model: str) -> None:
    built = make(model)
    assert built(images()).shape == (4, 5)
    assert built.forward_features(images()).shape == (4, built.num_features)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_a_gradient_for_every_parameter(model: str, norm: str) -> None:
    built = make(model, **({} if model == "convnext" else {"norm": norm}))
    move_gains(built)
    built(images(16)).logsumexp(1).sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        # The next batch norm subtracts what a linear bottleneck's norm has added.
        subtracted = model in ("efficientnet", "fused") and "batch" in norm and name.endswith("norm.bias")
        assert subtracted or parameter.grad.abs().max() > 1e-8, name


@pytest.mark.parametrize("model", MODELS)
def test_state_dict_round_trip_and_equal_builds(model: str) -> None:
    one, other = make(model), make(model)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.isfinite(a).all(), name
        assert torch.equal(a, b), name
    move_gains(one)
    one(images(16))  # moves running statistics
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.eval()(images()), one.eval()(images()))


@pytest.mark.parametrize("model", MODELS)
def test_bf16_is_near_fp32(model: str) -> None:
    built = make(model).eval()
    expected = built(images())
    found = built.bfloat16()(images().bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.05 * expected.abs().max().item(), rtol=0.05)


@pytest.mark.parametrize("norm", ["batch", "sync_batch"])
@pytest.mark.parametrize("model", ["resnet", "densenet", "efficientnet", "convnext", "non-local"])
def test_recomputed_blocks_give_the_same_gradients_and_running_statistics(model: str, norm: str) -> None:
    chosen = partial(MODELS[model], **({} if model == "convnext" else {"norm": norm}))
    plain = ModelBuilder(chosen, seed=0)()
    recomputed = ModelBuilder(chosen, seed=0, activation_checkpointing="full")()
    assert any("CheckpointWrapper" in type(module).__name__ for module in recomputed.modules())
    for built in (plain, recomputed):
        built(images()).logsumexp(1).sum().backward()
    for one, two in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    for one, two in zip(plain.buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("resnet", "batch"),
        ("non-local", "sync_batch"),
        ("efficientnet", "group"),
        ("densenet", "layer"),
        ("convnext", ""),
    ],
)
def test_mixed_precision_of_fsdp(process_group: None, model: str, norm: str) -> None:
    """Parameters in bf16, running statistics in fp32."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    shard = partial(fully_shard, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    chosen = partial(MODELS[model], **({"norm": norm} if norm else {}))
    built, plain = ModelBuilder(chosen, seed=0)(shard=shard), ModelBuilder(chosen, seed=0)()
    with torch.autocast("cpu", torch.bfloat16):
        found = built(images()).float()
    found.logsumexp(1).sum().backward()
    expected = plain(images())
    torch.testing.assert_close(found, expected, atol=0.1 * expected.abs().max().item(), rtol=0.1)
    assert all(parameter.grad is not None for parameter in built.parameters())


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_norms_of_one_image_keep_images_apart(norm: str) -> None:
    built = make("resnet", norm=norm)
    torch.testing.assert_close(built(images())[:2], built(images()[:2]))
    mixing = make("resnet")
    assert not torch.allclose(mixing(images())[:2], mixing(images()[:2]), atol=1e-3)


@pytest.mark.parametrize("network", [GoogLeNet, InceptionV3])
def test_inception_learns_in_every_parameter(network: type[nn.Module]) -> None:
    model = ModelBuilder(partial(network, 1, 5), seed=0)()
    model(torch.randn(2, 1, 75, 75)).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
