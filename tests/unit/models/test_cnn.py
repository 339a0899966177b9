from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.cnn import CNN

CONF = Path(__file__).parents[3] / "conf"
NORMS = ["none", "batch", "sync_batch", "group", "layer"]
SMALL = {
    "in_channels": 3,
    "image_size": 9,
    "stages": [[4, 3, 1, 2], [6, 3, 0, 1]],
    "hidden_dims": [7],
    "out_dim": 5,
}


def make(**changes: object) -> CNN:
    return ModelBuilder(partial(CNN, **{**SMALL, **changes}), seed=0)()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def from_yaml(name: str, **facts: int) -> CNN:
    with hydra.initialize_config_dir(str(CONF / "model"), version_base="1.3"):
        config = hydra.compose(name)
    config = OmegaConf.merge(config, facts)
    return hydra.utils.instantiate(config, _convert_="all")


def test_lenet_has_61706_parameters() -> None:
    model = from_yaml("lenet", in_channels=1, image_size=28, out_dim=10)
    assert sum(p.numel() for p in model.parameters()) == 61_706
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    kinds = {type(module) for module in model.modules()}
    assert {nn.Tanh, nn.AvgPool2d} <= kinds
    assert not {nn.ReLU, nn.MaxPool2d} & kinds


def test_lenet_is_the_textbook_chain_of_layers() -> None:
    model = from_yaml("lenet", in_channels=1, image_size=28, out_dim=10)
    convolutions = [nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)]
    linears = [nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)]
    theirs = nn.Sequential(
        *(layer for conv in convolutions for layer in (conv, nn.Tanh(), nn.AvgPool2d(2))),
        nn.Flatten(),
        *(layer for linear in linears[:2] for layer in (linear, nn.Tanh())),
        linears[2],
    )
    with torch.no_grad():
        for ours, copied in zip(model.parameters(), theirs.parameters(), strict=True):
            copied.copy_(ours)
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("alexnet", 61_100_840), ("vgg11", 132_863_336), ("vgg16", 138_357_544), ("vgg16_bn", 138_365_992)],
)
def test_counts_of_stage_tables(count, name: str, expected: int) -> None:
    assert count(name, in_channels=3, image_size=224, out_dim=1000) == expected


def test_alexnet_is_torchvisions(torchvision, take_weights) -> None:
    theirs = torchvision.models.alexnet(num_classes=5).eval()
    ours = from_yaml("alexnet", in_channels=3, image_size=224, out_dim=5).eval()
    take_weights(ours, theirs)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_strides_of_convolution_and_pooling() -> None:
    model = make(stages=[[4, 3, 1, 3, 2, 1], [6, 2, 0, 1, 2]], norm="group", bias=False)
    x = images()
    first = model.stages[0]
    y = nn.functional.conv2d(x, first.conv.weight, stride=2, padding=1)  # 9 -> 5
    y = nn.functional.max_pool2d(nn.functional.group_norm(y, 2).relu(), 3, stride=1)  # -> 3
    torch.testing.assert_close(first(x), y)
    assert model.stages(x).shape == (4, 6, 1, 1)  # and the second takes every other place of 3
    assert model(x).shape == (4, 5)


def test_convolutions_have_a_bias_where_no_batch_norm_subtracts_it() -> None:
    cases = [("none", None, True), ("group", None, True), ("sync_batch", None, False), ("batch", True, True)]
    for norm, bias, expected in [*cases, ("none", False, False)]:
        assert (make(norm=norm, bias=bias).stages[0].conv.bias is not None) == expected


def test_the_default_suits_digits() -> None:
    model = from_yaml("cnn", in_channels=1, image_size=8, out_dim=10)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_shapes() -> None:
    model = make()
    assert model.num_features == 7
    assert model.forward_features(images()).shape == (4, 7)
    assert model(images()).shape == (4, 5)
    without_hidden = make(hidden_dims=[])
    assert without_hidden.num_features == 6 * 2 * 2  # 9 -> 9 -> pooled 4 -> 2
    assert without_hidden.forward_features(images()).shape == (4, 24)


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_for_every_parameter(norm: str, pool: str) -> None:
    model = make(norm=norm, pool=pool)
    model(images(16)).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("norm", NORMS)
def test_state_dict_round_trip_and_equal_builds(norm: str) -> None:
    model, other = make(norm=norm), make(norm=norm)
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, two), name
    model(images(16))  # moves the running statistics of a batch norm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(images()), model.eval()(images()), atol=0, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_is_near_fp32(norm: str) -> None:
    model = make(norm=norm).eval()
    expected = model(images())
    found = model.bfloat16()(images().bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def test_layer_norm_keeps_images_apart_and_batch_norm_does_not() -> None:
    for norm, apart in [("none", True), ("layer", True), ("batch", False)]:
        model = make(norm=norm)
        alone, among = model(images(4)[:2]), model(images(4))[:2]
        assert torch.allclose(alone, among, atol=1e-6) == apart, norm


def test_recomputed_stages_give_the_same_gradients() -> None:
    make_model = partial(CNN, **SMALL)
    plain = ModelBuilder(make_model, seed=0)()
    recomputed = ModelBuilder(make_model, seed=0, activation_checkpointing="full")()
    assert sum("CheckpointWrapper" in type(module).__name__ for module in recomputed.modules()) == 2
    for model in (plain, recomputed):
        model(images()).logsumexp(1).sum().backward()
    for one, two in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [[4, 3, 1, 2], [6, 5, 0, 1]],
            r"stages\[1\]=\[6, 5, 0, 1\]: 4x4 maps reach this stage \(image_size=9\).* take",
        ),
        ([[4, 3, 1, 10]], r"stages\[0\]=\[4, 3, 1, 10\]: 9x9 maps .* 10x10 pooling"),
        ([[4, 3, 1]], r"stages\[0\]=\[4, 3, 1\]: a stage is four numbers, \[out_channels"),
        ([[4, 3, -1, 2]], r"padding at least 0"),
        ([[4, 3, 1, 2, 1, 0]], r"so must strides"),
        ([[4, 3, 1, 2, 1, 1, 1]], r"and up to two more behind them, stride and pool_stride"),
        ([[0, 3, 1, 2]], r"out_channels, kernel_size and pool_size must be at least 1"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CNN(**{**SMALL, "stages": stages})


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of shape \(1, 9, 9\), but the model was built for \(3, 9, 9\)"):
        make()(torch.zeros(2, 1, 9, 9))


def test_initial_kernels_have_the_variance_that_keeps_the_signal() -> None:
    model = make(stages=[[64, 3, 1, 1], [64, 3, 1, 1]])
    for stage, fan_in in zip(model.stages, [3 * 9, 64 * 9], strict=True):
        assert stage.conv.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        assert not stage.conv.bias.any()
