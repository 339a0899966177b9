"""What a method gives a part: closed forms of linear models and games, and captum's own answers."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from math import factorial

import pytest
import torch
from torch import Tensor, nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.interpret.embedding import of_embeddings
from scaledl.interpret.grad_cam import grad_cam, last_maps
from scaledl.interpret.integrated_gradients import integrated_gradients
from scaledl.interpret.lime import lime
from scaledl.interpret.occlusion import occlusion
from scaledl.interpret.saliency import gradient
from scaledl.interpret.shapley import shapley
from scaledl.interpret.subject import Subject, of_image, of_parts, scores
from scaledl.models.bag_of_words import BagOfWords
from scaledl.models.cnn import CNN
from scaledl.models.convnext import ConvNeXt
from scaledl.models.gpt import GPT
from scaledl.models.mlp import MLP
from scaledl.models.resnet import ResNet
from scaledl.models.vit import ViT

DIGITS_CNN = partial(CNN, 1, 8, [[8, 3, 1, 2], [16, 3, 1, 2]], [16], 10)


def built(model: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return ModelBuilder(model, seed=seed)().eval()


def of_class(model: nn.Module, target: int) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x)[:, target]


def linear(num_features: int) -> tuple[Subject, Tensor]:
    """A linear score, and w · (x - b) of each feature."""
    generator = torch.Generator().manual_seed(0)
    w, x, b = (torch.randn(1, num_features, generator=generator) for _ in range(3))
    return of_parts(lambda z: z @ w[0] + 0.3, x, b), (w * (x - b))[0]


@pytest.mark.parametrize("num_features", [5, 12])
def test_on_a_linear_model_all_shares_are_the_same(num_features: int) -> None:
    subject, expected = linear(num_features)
    shares, difference = integrated_gradients(subject.score, subject.x, subject.baseline)
    torch.testing.assert_close(shares, expected)
    torch.testing.assert_close(difference, expected.sum())
    torch.testing.assert_close(occlusion(subject), expected)
    torch.testing.assert_close((gradient(subject.score, subject.x) * (subject.x - subject.baseline))[0], expected)


@pytest.mark.parametrize("num_features", [5, 12])
def test_on_a_linear_model_shap_values_are_the_same_and_lime_has_their_order(num_features: int) -> None:
    pytest.importorskip("captum")
    subject, expected = linear(num_features)
    torch.testing.assert_close(shapley(subject), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lime(subject).argsort(), expected.argsort())


def test_shap_values_of_six_features_are_those_of_all_coalitions() -> None:
    pytest.importorskip("captum")
    model = built(partial(MLP, 6, [16], 3, "tanh"))
    x, b = torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(0))
    worth = {}
    for size in range(7):
        for coalition in combinations(range(6), size):
            there = torch.zeros(6, dtype=torch.bool)
            there[list(coalition)] = True
            worth[coalition] = model(torch.where(there, x, b))[0, 1].item()
    assert len(worth) == 64
    expected = torch.zeros(6)
    for coalition, value in worth.items():
        for feature in set(range(6)) - set(coalition):
            weight = factorial(len(coalition)) * factorial(5 - len(coalition)) / factorial(6)
            expected[feature] += weight * (worth[tuple(sorted((*coalition, feature)))] - value)
    torch.testing.assert_close(shapley(of_parts(of_class(model, 1), x, b)), expected, atol=1e-5, rtol=1e-4)


def test_shap_values_of_an_image_make_up_the_score_and_come_out_again() -> None:
    pytest.importorskip("captum")
    model = built(DIGITS_CNN)
    subject = of_image(of_class(model, 3), torch.rand(1, 1, 8, 8))
    state = torch.get_rng_state()
    found = shapley(subject, seed=1, num_orders=2)
    assert torch.equal(torch.get_rng_state(), state)
    after, before = scores(subject.score, torch.cat((subject.x, subject.baseline)))
    assert found.shape == (1, 8, 8)
    torch.testing.assert_close(found.sum(), after - before, atol=1e-4, rtol=1e-4)
    assert torch.equal(found, shapley(subject, seed=1, num_orders=2))
    assert not torch.equal(found, shapley(subject, seed=2, num_orders=2))


def test_integrated_gradients_sum_to_the_difference_of_scores() -> None:
    model = built(DIGITS_CNN)
    for x in torch.rand(4, 1, 1, 8, 8):
        shares, difference = integrated_gradients(of_class(model, 2), x, torch.zeros_like(x), tolerance=1e-3)
        assert difference.abs() > 0.01
        torch.testing.assert_close(difference, (model(x) - model(0 * x))[0, 2])
        assert (shares.sum() - difference).abs() < 0.01 * difference.abs() + 1e-3


def test_integrated_gradients_of_a_language_model_sum_to_the_difference_of_scores() -> None:
    model = built(partial(GPT, 40, 16, dim=32, depth=2, num_heads=2, norm="rmsnorm", position="rotary", init_std=0.2))
    embedded, baseline, read = of_embeddings(model, torch.randint(40, (1, 12)))
    shares, difference = integrated_gradients(lambda z: read(z)[:, -1, 7], embedded, baseline)
    assert (shares.sum() - difference).abs() <= 0.02 * difference.abs()
    assert shares.shape == (12, 32)


def test_integrated_gradients_are_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model = built(partial(MLP, 8, [16], 3, "tanh"))
    x, b = torch.randn(2, 1, 8)
    theirs = attr.IntegratedGradients(model).attribute(x, b, target=1, n_steps=128)
    torch.testing.assert_close(integrated_gradients(of_class(model, 1), x, b)[0], theirs[0], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (DIGITS_CNN, "stages.1.activation"),
        (partial(ResNet, 1, 10, depths=[1, 1], dims=[4, 8], stem="cifar"), "stages.1.0"),
    ],
)
def test_grad_cam_is_captums(model: partial, layer: str) -> None:
    attr = pytest.importorskip("captum.attr")
    network, x = built(model), torch.rand(3, 1, 8, 8)
    module = network.get_submodule(layer)
    theirs = attr.LayerGradCam(network, module).attribute(x, target=4, relu_attributions=True)
    assert theirs.abs().max() > 0
    torch.testing.assert_close(grad_cam(of_class(network, 4), module, x), theirs[:, 0].detach())
    assert not any(each._forward_hooks for each in network.modules())


def test_which_layer_gives_the_last_maps() -> None:
    x = torch.rand(1, 1, 8, 8)
    assert last_maps(built(DIGITS_CNN), x) == "stages.1.activation"  # before pooling
    assert last_maps(built(partial(ResNet, 1, 10, depths=[1, 1], dims=[4, 8], stem="cifar")), x) == "stages"
    assert last_maps(built(partial(ViT, 1, 8, 2, 10, dim=16, depth=1, num_heads=2)), x) is None
    assert last_maps(built(partial(MLP, 64, [8], 10)), x) is None
    convnext = built(partial(ConvNeXt, 1, 10, depths=[1, 1], dims=[4, 8], patch_size=1))
    assert last_maps(convnext, x) == "stages"


def test_saliency_belongs_to_the_weights() -> None:
    """Adebayo et al. (2018): with random weights, what looks at the image alone would stay as it is."""
    x = torch.rand(1, 1, 8, 8)
    one, again, other = (gradient(of_class(built(DIGITS_CNN, seed), 0), x).flatten() for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert torch.corrcoef(torch.stack((one.abs(), other.abs())))[0, 1].abs() < 0.5


def test_occlusion_of_an_image_finds_the_only_place_that_counts() -> None:
    subject = of_image(lambda x: x[:, 0, 5, 2], torch.ones(1, 3, 12, 12))
    found = occlusion(subject)
    assert found.shape == (1, 12, 12)
    assert found[0, 5, 2] == found.max() == 1
    assert found[0, 4, 3] < 1
    assert not found[0, :3].any()
    assert not found[0, :, 5:].any()


@pytest.mark.parametrize("side", [1, 3, 8, 28, 33])
def test_regions_and_windows_cover_every_pixel(side: int) -> None:
    subject = of_image(lambda x: x.sum((1, 2, 3)), torch.rand(1, 3, side, side))
    assert subject.windows.any(0).all()
    assert subject.regions.unique().tolist() == list(range(int(subject.regions.max()) + 1))
    assert int(subject.regions.max()) < 64


def test_embeddings_stand_for_their_tokens() -> None:
    model = built(partial(GPT, 20, 8, dim=16, depth=1, num_heads=2))
    ids = torch.arange(8)[None]  # as the positions are
    embedded, baseline, read = of_embeddings(model, ids)
    torch.testing.assert_close(read(embedded), model(ids))
    torch.testing.assert_close(embedded, model.token_embedding(ids))
    torch.testing.assert_close(baseline[0, 3], model.token_embedding.weight.mean(0))
    assert read(torch.cat((embedded, baseline))).shape == (2, 8, 20)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_without_embeddings_of_single_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"BagOfWords has no nn\.Embedding that reads its tokens one by one"):
        of_embeddings(built(partial(BagOfWords, 20, 3)), torch.arange(1, 5)[None])
