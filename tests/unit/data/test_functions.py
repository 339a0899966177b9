import numpy as np
import pytest
import torch
from scipy.special import j0

from scaledl.data.functions import FORMULAS, Functions

PI = np.pi
EXPECTED = {
    "bessel": lambda x: j0(20 * x[:, 0]),
    "exp_sin": lambda x: np.exp(np.sin(PI * x[:, 0]) + x[:, 1] ** 2),
    "product": lambda x: x[:, 0] * x[:, 1],
    "nested": lambda x: np.exp(
        (np.sin(PI * (x[:, 0] ** 2 + x[:, 1] ** 2)) + np.sin(PI * (x[:, 2] ** 2 + x[:, 3] ** 2))) / 2
    ),
    "mean_sin": lambda x: np.exp(sum(np.sin(PI * x[:, i] / 2) ** 2 for i in range(100)) / 100),
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_values_are_the_formulas(formula: str) -> None:
    data = Functions(formula, 8, 8, num_train=50)
    batch = data.split("train").__getitems__(np.arange(50))
    x = batch["x"].double().numpy()
    np.testing.assert_allclose(batch["y"], EXPECTED[formula](x), atol=1e-5)
    assert data.facts() == {"in_dim": x.shape[1], "out_dim": 1}
    assert np.abs(x).max() <= 1 < 2 * x.max() - 2 * x.min()
    assert batch["x"].dtype == batch["y"].dtype == torch.float32


def test_splits_are_apart_and_a_function_of_the_seed() -> None:
    one, same, other = (Functions("product", 8, 8, seed=seed) for seed in (0, 0, 1))
    rows = np.concatenate([split.__getitems__(np.arange(1000))["x"] for _, split in one.splits()])
    assert len(np.unique(rows, axis=0)) == 3000
    draws = [data.split("test").__getitems__(np.arange(5))["x"] for data in (one, same, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_noise_is_in_the_training_targets_only() -> None:
    data = Functions("product", 8, 8, num_train=20_000, noise=0.1, num_val=0)
    assert [name for name, _ in data.splits()] == ["train", "test"]
    for split, noise in (("train", 0.1), ("test", 0.0)):
        batch = data.split(split).__getitems__(np.arange(len(data.split(split))))
        error = batch["y"] - batch["x"].prod(1)
        assert error.std().item() == pytest.approx(noise, abs=2e-3)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.num_train=0 must be at least 1"):
        Functions("product", 8, 8, num_train=0)
    with pytest.raises(ValueError, match=r"data.in_dim=3, but product has in_dim=2; set it to null"):
        Functions("product", 8, 8, in_dim=3)
