import math

import pytest
import torch

from scaledl.layers.feedforward import FeedForward


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FORMULAS = {
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": tanh_gelu,
    "silu": lambda x: x * sigmoid(x),
}


@pytest.mark.parametrize("activation", FORMULAS)
def test_equals_the_formula(activation: str) -> None:
    layer, x = FeedForward(8, 20, activation=activation, init_std=0.5), torch.randn(3, 5, 8)
    hidden = FORMULAS[activation](x @ layer.up.weight.T + layer.up.bias)
    torch.testing.assert_close(layer(x), hidden @ layer.down.weight.T + layer.down.bias, atol=1e-6, rtol=1e-5)


def test_swiglu_equals_the_formula() -> None:
    layer, x = FeedForward(8, 20, activation="swiglu", bias=False, init_std=0.5), torch.randn(3, 5, 8)
    gate = x @ layer.gate.weight.T
    hidden = gate * sigmoid(gate) * (x @ layer.up.weight.T)
    torch.testing.assert_close(layer(x), hidden @ layer.down.weight.T, atol=1e-6, rtol=1e-5)


def test_init_and_default_width() -> None:
    layer = FeedForward(128, activation="swiglu", init_std=0.02, out_init_std=0.005)
    assert layer.down.in_features == 512
    for linear, std in ((layer.gate, 0.02), (layer.up, 0.02), (layer.down, 0.005)):
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05)
        assert linear.bias.abs().max() == 0
