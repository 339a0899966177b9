"""One sample is read from its gradient, exactly; what has no linear first layer is said."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scaledl.federated.attack import first_linear, read_input
from scaledl.models.cnn import CNN
from scaledl.models.mlp import MLP


def test_a_sample_is_read_from_its_gradient() -> None:
    torch.manual_seed(0)
    model, x = MLP(in_dim=20, hidden_dims=[16, 8], out_dim=5).double(), torch.rand(1, 20).double()
    F.cross_entropy(model(x), torch.tensor([3])).backward()
    layer = model.get_submodule(first_linear(model))
    read = read_input(-0.1 * layer.weight.grad, -0.1 * layer.bias.grad)  # as a step of SGD sends it
    assert torch.allclose(read, x[0], atol=1e-12)


def test_of_two_samples_it_reads_a_mixture() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(20, 5), torch.rand(2, 20)
    F.cross_entropy(model(x), torch.tensor([3, 1])).backward()
    read = read_input(model.weight.grad, model.bias.grad)
    assert min((read - one).norm() / one.norm() for one in x) > 0.01


def test_a_first_layer_that_is_not_linear_is_said() -> None:
    model = CNN(in_channels=1, image_size=8, out_dim=10, stages=[[4, 3, 1, 2]], hidden_dims=[])
    with pytest.raises(ValueError, match=r"the first layer of CNN is \w+; set federation.attack=false"):
        first_linear(model)
