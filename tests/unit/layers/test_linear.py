"""The layer whose products another library computes, against torch's."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from scaledl.layers import linear
from scaledl.layers.linear import Linear, is_faster
from scaledl.layers.lora import LoRALinear


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN is there on every x86 processor; the choice by AMD's name is about speed alone."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(linear, "processor_is_amd", lambda: True)


def gradients(layer: nn.Linear, x: Tensor) -> list[Tensor]:
    y = layer(x)
    wanted = [t for t in (x, layer.weight, layer.bias) if t is not None and t.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), wanted)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(512, 256), (4, 128, 256), (2, 2, 128, 256)])
def test_equals_torchs_layer(on_amd: None, bias: bool, shape: tuple[int, ...]) -> None:
    ours, torchs = Linear(256, 257, bias), nn.Linear(256, 257, bias)
    torchs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, requires_grad=True)
    assert is_faster(x, ours.weight)
    for a, b in zip(gradients(ours, x), gradients(torchs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_only_what_learns_gets_a_gradient(on_amd: None) -> None:
    layer = Linear(256, 257)
    layer.weight.requires_grad_(False)
    x = torch.randn(512, 256)
    assert len(gradients(layer, x)) == 2
    assert len(gradients(layer, x.requires_grad_())) == 3


def test_tensors_in_any_layout(on_amd: None) -> None:
    layer = Linear(256, 257)
    x = torch.randn(256, 512).mT.requires_grad_()
    expected = x @ layer.weight.mT + layer.bias
    y = layer(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    for a, b in zip(*(torch.autograd.grad(out.sum(), (x, layer.weight)) for out in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)  # the gradient of a sum has strides of 0


def test_a_gradient_of_a_gradient(on_amd: None) -> None:
    layer = Linear(256, 257)
    x = torch.randn(512, 256, requires_grad=True)

    def penalty(y: Tensor) -> list[Tensor]:
        (slope,) = torch.autograd.grad(y.tanh().sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), (x, layer.weight)))

    for a, b in zip(penalty(layer(x)), penalty(x @ layer.weight.mT + layer.bias), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_traces_it_sees_torchs_operation(on_amd: None) -> None:
    layer = Linear(256, 257)
    x = torch.randn(512, 256)
    exported = torch.export.export(layer, (x,)).graph_module.code
    assert "linear" in exported
    assert "mkldnn" not in exported
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    slopes = jacrev(lambda bias: functional_call(layer, {"bias": bias}, (x,)).sum(0))(layer.bias)
    torch.testing.assert_close(slopes, 512 * torch.eye(257))
    assert not is_faster(x[:8], layer.weight)  # too small to gain
    assert not is_faster(x.double(), layer.weight.double())
    assert not is_faster(x.to("meta"), layer.weight.to("meta"))


def test_adapters_gain_too(on_amd: None, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LoRALinear(256, 257, True, rank=2, alpha=4, dropout=0)
    called = []
    monkeypatch.setattr(linear, "product", lambda x, w, b=None: called.append(x) or x @ w.mT + (0 if b is None else b))
    layer(torch.randn(512, 256))
    assert len(called) == 1
