import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scaledl.layers.spectral import SpectralConv2d, SpectralLinear


def layer_and_input(kind: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layer = SpectralLinear(7, 5) if kind == "linear" else SpectralConv2d(3, 5, 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    return layer, torch.randn(4, 7) if kind == "linear" else torch.randn(4, 3, 6, 6)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_weight_that_is_used_has_spectral_norm_1(kind: str) -> None:
    layer, x = layer_and_input(kind)
    for _ in range(300):
        layer(x)
    used = layer.weight / torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(layer._normalized(), used)
    if kind == "linear":
        torch.testing.assert_close(layer(x), x @ used.T + layer.bias)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_scaling_the_weight_changes_nothing_and_so_has_no_gradient(kind: str) -> None:
    layer, x = layer_and_input(kind)
    layer.eval()
    layer(x).square().sum().backward()
    slope = (layer.weight.grad * layer.weight).sum()
    assert abs(slope) < 1e-4 * layer.weight.grad.norm() * layer.weight.norm()


def test_it_starts_orthogonal_and_with_the_right_norm() -> None:
    layer = SpectralLinear(9, 9)
    layer.reset_parameters()
    torch.testing.assert_close(layer._normalized() @ layer._normalized().T, torch.eye(9), atol=1e-4, rtol=0)


def test_each_training_pass_is_one_step_of_the_power_iteration_and_evaluation_none() -> None:
    layer, x = layer_and_input("linear")
    before = layer.u.clone()
    v = nn.functional.normalize(layer.weight.T @ before, dim=0)
    layer(x)
    torch.testing.assert_close(layer.v, v)
    torch.testing.assert_close(layer.u, nn.functional.normalize(layer.weight @ v, dim=0))
    after = layer.u.clone()
    layer.eval()
    layer(x)
    assert torch.equal(layer.u, after)
    assert not torch.equal(before, after)


def test_a_forward_pass_that_is_done_again_in_the_backward_pass_is_the_same() -> None:
    gradients = []
    for again in (False, True):
        layer, x = layer_and_input("convolution")
        out = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
        out.square().sum().backward()
        gradients.append((layer.weight.grad, layer.u))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_two_passes_before_one_backward() -> None:
    layer, x = layer_and_input("linear")
    (layer(x) + layer(2 * x)).sum().backward()
    assert layer.weight.grad.isfinite().all()
