from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from torch import nn

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.mlp import MLP
from scaledl.models.perceptron import Perceptron

ACTIVATIONS = ["sigmoid", "tanh", "relu", "gelu", "silu"]
NORMS = ["none", "batch", "layer"]


def make(**changes: object) -> MLP:
    arguments = {"in_dim": 12, "hidden_dims": [16, 8], "out_dim": 5, **changes}
    return ModelBuilder(partial(MLP, **arguments), seed=0)()


def inputs(batch: int = 6, in_dim: int = 12) -> torch.Tensor:
    return torch.randn(batch, in_dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("sklearn_name", "ours"), [("logistic", "sigmoid"), ("tanh", "tanh"), ("relu", "relu")])
def test_probabilities_equal_scikit_learns_with_its_weights(sklearn_name: str, ours: str) -> None:
    x, y = load_digits(return_X_y=True)
    theirs = MLPClassifier((24, 16), activation=sklearn_name, max_iter=3, random_state=0)
    with pytest.warns(UserWarning, match="Maximum iterations"):
        theirs.fit(x / 16, y)
    model = MLP(64, [24, 16], 10, activation=ours).double()
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear, weight, bias in zip(linears, theirs.coefs_, theirs.intercepts_, strict=True):
            linear.weight.copy_(torch.from_numpy(weight.T))
            linear.bias.copy_(torch.from_numpy(bias))
    ours_found = model(torch.from_numpy(x / 16)).softmax(1).detach().numpy()
    np.testing.assert_allclose(ours_found, theirs.predict_proba(x / 16), atol=1e-12)


def test_shapes_and_parameter_count() -> None:
    model, x = make(), inputs().reshape(6, 3, 2, 2)
    assert model.num_features == 8
    assert model.forward_features(x).shape == (6, 8)
    assert model(x).shape == (6, 5)
    torch.testing.assert_close(model(x), model(x.flatten(1)))
    assert sum(p.numel() for p in model.parameters()) == 12 * 16 + 16 + 16 * 8 + 8 + 8 * 5 + 5


def test_no_hidden_layer_is_a_linear_map() -> None:
    model, x = make(hidden_dims=[]), inputs()
    assert model.num_features == 12
    torch.testing.assert_close(model(x), x @ model.out.weight.T + model.out.bias)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_gradient_for_every_parameter(activation: str, norm: str) -> None:
    model = make(activation=activation, norm=norm)
    model(inputs(32)).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "silu"])
def test_signal_keeps_its_size_through_five_layers(activation: str) -> None:
    model = make(in_dim=256, hidden_dims=[256] * 5, activation=activation)
    features = model.forward_features(inputs(64, 256))
    assert 0.5 < features.pow(2).mean().sqrt() < 2


@pytest.mark.parametrize("norm", NORMS)
def test_state_dict_round_trip(norm: str) -> None:
    model, other = make(norm=norm), make(norm=norm)
    model(inputs(32))  # moves the running statistics of a batch norm
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.eval()(inputs()), model.eval()(inputs()), atol=0, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_building_twice_gives_the_same_weights_and_no_uninitialised_one(norm: str) -> None:
    first, second = make(norm=norm), make(norm=norm)
    for (name, one), two in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, two), name
    another = ModelBuilder(partial(MLP, 12, [16, 8], 5), seed=1)()
    assert not torch.equal(another.out.weight, first.out.weight)


@pytest.mark.parametrize("norm", NORMS)
def test_bf16_is_near_fp32(norm: str) -> None:
    model, x = make(norm=norm).eval(), inputs()
    expected = model(x)
    found = model.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def test_dropout_acts_in_training_only() -> None:
    model, x = make(dropout=0.5), inputs()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("changes", [{"in_dim": 0}, {"hidden_dims": [16, 0]}, {"out_dim": 0}])
def test_a_width_below_one_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"=.*every width must be at least 1; hidden_dims=\[\]"):
        make(**changes)


@pytest.mark.parametrize("model", [MLP(12, [4], 3), Perceptron(12, 3)])
def test_a_sample_of_another_size_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="a sample has 13 values, but the model was built with in_dim=12"):
        model(torch.zeros(2, 13))


def test_perceptron_is_one_linear_map_from_zero() -> None:
    model = ModelBuilder(partial(Perceptron, 12, 3), seed=0)()
    assert sum(p.numel() for p in model.parameters()) == 12 * 3 + 3
    assert not any(p.any() for p in model.parameters())
    x = inputs()
    with torch.no_grad():
        model.out.weight.copy_(torch.arange(36.0).reshape(3, 12))
        model.out.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(model(x.reshape(6, 1, 3, 4)), x @ model.out.weight.T + model.out.bias)
    assert torch.equal(model.forward_features(x), x)
    assert model.num_features == 12


def test_initial_weights_have_the_variance_that_keeps_the_signal() -> None:
    model = make(in_dim=400, hidden_dims=[300, 200], out_dim=100, activation="relu")
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for linear, expected in zip(linears, [(2 / 400) ** 0.5, (2 / 300) ** 0.5, (1 / 200) ** 0.5], strict=True):
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not linear.bias.any()
