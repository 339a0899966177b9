"""Landscapes, gradients, features and attention."""

from functools import partial

import pytest
import torch
from torch import nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.interpret.activation_maximization import activation_maximization
from scaledl.interpret.attention import attention_layers, watched
from scaledl.interpret.gradients import gradient_sizes
from scaledl.interpret.landscape import filter_normalized, losses_around
from scaledl.models.gpt import GPT
from scaledl.models.mlp import MLP


def test_slices_of_a_quadratic_are_parabolas() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    half = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    A = half @ half.T
    directions = [filter_normalized([weight], generator) for _ in range(2)]
    d, e = (direction[0].flatten() for direction in directions)
    theta = weight.detach().flatten().clone()
    places = torch.cartesian_prod(
        torch.linspace(-1, 1, 5, dtype=torch.float64), torch.tensor([-0.5, 0.0, 2.0]).double()
    )
    found = losses_around(lambda: 0.5 * weight.flatten() @ A @ weight.flatten(), [weight], directions, places)
    a, b = places.T
    linear = theta @ A @ theta / 2 + a * (theta @ A @ d) + b * (theta @ A @ e)
    torch.testing.assert_close(found, linear + a**2 * (d @ A @ d) / 2 + b**2 * (e @ A @ e) / 2 + a * b * (d @ A @ e))
    assert torch.equal(weight.detach().flatten(), theta)


def test_filters_of_a_direction_are_as_long_as_the_models() -> None:
    layers = nn.ModuleList([nn.Conv2d(2, 3, 3), nn.Linear(4, 5)])
    parameters = list(layers.parameters())
    direction = filter_normalized(parameters, torch.Generator().manual_seed(0))
    for parameter, part in zip(parameters, direction, strict=True):
        if parameter.ndim < 2:
            assert not part.any()
        else:
            torch.testing.assert_close(part.flatten(1).norm(dim=1), parameter.flatten(1).norm(dim=1).detach())
            assert torch.nn.functional.cosine_similarity(part.flatten(), parameter.flatten(), 0).abs() < 0.7


def test_weights_come_back_after_an_error() -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def fails() -> torch.Tensor:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        losses_around(fails, [weight], [[torch.ones(2, 2)]], torch.ones(1, 1))
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_gradient_sizes_are_those_of_a_backward_pass() -> None:
    model, x = MLP(4, [3], 2), torch.randn(5, 4)
    names, sizes = gradient_sizes(model, [lambda: model(x).square().mean(), lambda: 2 * model(x).square().mean()])
    model(x).square().mean().backward()
    assert names == ["hidden.0.weight", "out.weight"]
    expected = torch.stack([p.grad.square().mean().sqrt() for p in (model.hidden[0].weight, model.out.weight)])
    torch.testing.assert_close(sizes, torch.stack((expected, 2 * expected), 1))


def test_features_of_a_linear_score_go_to_the_ends_of_the_range() -> None:
    w = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    low, high = torch.full((3, 4, 4), -1.0), torch.full((3, 4, 4), 2.0)
    found = activation_maximization(lambda x: (x * w).sum((1, 2, 3)), low, high, 2, steps=200, smoothness=0.0)
    assert found.shape == w.shape
    assert found.min() >= -1
    assert found.max() <= 2
    torch.testing.assert_close(found[w.abs() > 0.3], torch.where(w > 0, 2.0, -1.0)[w.abs() > 0.3], atol=0.1, rtol=0)


def test_smooth_features_are_smoother() -> None:
    w = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    zeros, ones = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)
    draw = partial(activation_maximization, lambda x: (x * w).sum((1, 2, 3)), zeros, ones, 1, steps=60)
    rough, smooth = (draw(smoothness=each).diff(dim=3).abs().mean() for each in (0.0, 5.0))
    assert smooth < 0.8 * rough


def test_attention_is_seen_in_every_pass_and_no_hook_stays() -> None:
    model = ModelBuilder(partial(GPT, 20, 8, dim=16, depth=3, num_heads=2))().eval()
    layers = attention_layers(model, 2)
    assert list(layers) == ["blocks.0.attention", "blocks.2.attention"]
    with watched(layers) as maps:
        model(torch.arange(6)[None])
        model(torch.arange(5)[None])
    assert [each.shape for each in maps["blocks.0.attention"]] == [(1, 2, 6, 6), (1, 2, 5, 5)]
    for weights in maps["blocks.2.attention"]:
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert not weights.triu(1).any()
    assert not any(module._forward_pre_hooks for module in model.modules())
