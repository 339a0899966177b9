"""The RBM against scikit-learn's, and against the sum over all hidden states."""

from functools import partial
from itertools import product

import pytest
import torch
from sklearn.neural_network import BernoulliRBM

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.rbm import RBM


def loud(in_dim: int = 6, hidden_dim: int = 4) -> RBM:
    model = ModelBuilder(partial(RBM, in_dim, hidden_dim, init_std=1.0))()
    with torch.no_grad():
        for bias in (model.visible_bias, model.hidden_bias):
            bias += torch.linspace(-1, 1, len(bias))
    return model.double()


@torch.no_grad()
def test_free_energy_and_features_equal_scikit_learns() -> None:
    model = loud()
    v = torch.rand(5, 6, dtype=torch.float64)
    theirs = BernoulliRBM(4, n_iter=1, random_state=0).fit(v.numpy())
    theirs.components_ = model.weight.numpy()
    theirs.intercept_hidden_, theirs.intercept_visible_ = model.hidden_bias.numpy(), model.visible_bias.numpy()
    torch.testing.assert_close(model(v).squeeze(1), torch.from_numpy(theirs._free_energy(v.numpy())))
    torch.testing.assert_close(model.forward_features(v), torch.from_numpy(theirs.transform(v.numpy())))


@torch.no_grad()
def test_free_energy_sums_over_the_hidden_states() -> None:
    model = loud()
    v = torch.tensor([[1.0, 0, 1, 1, 0, 0]], dtype=torch.float64)
    h = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)  # (16, 4)
    energies = -(v @ model.visible_bias + h @ model.hidden_bias + h @ (model.weight @ v[0]))
    torch.testing.assert_close(model(v)[0, 0], -torch.logsumexp(-energies, 0))


@torch.no_grad()
def test_visible_units_follow_hidden_ones_that_are_drawn() -> None:
    model = loud()
    v = torch.rand(2, 6, dtype=torch.float64)
    certain = torch.stack((torch.zeros(4), torch.ones(4))).double()  # below any probability, and above
    expected = torch.stack((model.visible_bias + model.weight.sum(0), model.visible_bias)).sigmoid()
    torch.testing.assert_close(model(v, certain), expected)


def test_images_are_flattened_and_others_refused() -> None:
    model = loud()
    assert model(torch.rand(3, 1, 2, 3).double()).shape == (3, 1)
    with pytest.raises(ValueError, match="x has 7 values a sample, but in_dim=6"):
        model(torch.rand(3, 7).double())
