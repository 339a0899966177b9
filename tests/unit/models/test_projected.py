from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from scaledl.distributed.parallelize import ModelBuilder, blocks_of
from scaledl.layers.features import features
from scaledl.models.cnn import CNN
from scaledl.models.projected import Projected
from scaledl.models.vit import ViT

CNN_8 = partial(CNN, 1, 8, [[4, 3, 1, 2], [8, 3, 1, 2]], [16])
VIT_8 = partial(ViT, 1, 8, 2, dim=16, depth=2, num_heads=2)


def make(backbone: Callable[..., nn.Module] = CNN_8, **settings: object) -> nn.Module:
    return ModelBuilder(lambda: Projected(backbone(out_dim=12), hidden_dim=12, out_dim=6, **settings))()


def images() -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", [CNN_8, VIT_8], ids=["cnn", "vit"])
@pytest.mark.parametrize("predictor_dim", [None, 10])
def test_a_gradient_for_every_parameter(backbone: Callable[..., nn.Module], predictor_dim: int | None) -> None:
    model = make(backbone, predictor_dim=predictor_dim)
    z = model(images(), predict=predictor_dim is not None)
    assert z.shape == (5, 6)
    z.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(blocks_of(model)) == 2


def test_it_is_its_formula() -> None:
    model, x = make(norm="none", predictor_dim=10), images()
    z = model.projection(model.backbone(x).relu())
    torch.testing.assert_close(model(x), z)
    torch.testing.assert_close(model(x, predict=True), model.predictor(z))
    assert torch.equal(model.forward_features(x), model.backbone.forward_features(x))
    assert model.num_features == model.forward_features(x).shape[1] == 16


def test_features_come_through_the_hooks_of_a_call() -> None:
    """Which gather a sharded model's parameters: those of the model and of the backbone in it."""
    model, called = make(VIT_8), []
    for module in (model, model.backbone):
        module.register_forward_pre_hook(lambda module, inputs: called.append(module))
    found = features(model, images())
    assert called == [model, model.backbone]
    assert torch.equal(found, model.backbone.forward_features(images()))
    assert model(images()).shape == (5, 6)  # which is as it was
    with pytest.raises(ValueError, match="images of shape"):
        features(model, torch.zeros(1, 2, 3, 3))
    assert model(images()).shape == (5, 6)


def test_a_model_of_the_yaml(from_yaml: Callable[..., nn.Module]) -> None:
    facts = {"in_channels": 1, "image_size": 8, "out_dim": 32}
    with torch.device("meta"):
        model = from_yaml("projected", backbone=facts, hidden_dim=32)
    assert isinstance(model.backbone, CNN)
    assert model(torch.zeros(2, 1, 8, 8, device="meta")).shape == (2, 64)
