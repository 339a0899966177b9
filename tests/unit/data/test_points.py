import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from scaledl.data.points import Points

KINDS = ["blobs", "circles", "moons", "xor", "spirals"]


def arrays(kind: str, split: str = "train", **settings: object) -> tuple[np.ndarray, np.ndarray]:
    dataset = Points(kind, 8, 8, **settings).datasets()[split]
    batch = dataset.__getitems__(np.arange(len(dataset)))
    return batch["x"].numpy(), batch["y"].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_and_facts(kind: str) -> None:
    data = Points(kind, 8, 8, num_samples=600)
    assert {name: len(dataset) for name, dataset in data.splits()} == {"train": 360, "val": 120, "test": 120}
    batch = data.split("train").__getitems__(np.array([5, 0, 5]))
    assert (batch["x"].shape, batch["x"].dtype) == ((3, 2), torch.float32)
    assert (batch["y"].shape, batch["y"].dtype) == ((3,), torch.int64)
    assert torch.equal(batch["x"][0], batch["x"][2])
    num_classes = 3 if kind in ("blobs", "spirals") else 2
    assert data.facts() == {"num_classes": num_classes, "in_dim": 2}
    assert kind in data.describe()


@pytest.mark.parametrize("kind", KINDS)
def test_splits_are_disjoint_stratified_and_a_function_of_the_seed(kind: str) -> None:
    splits = [arrays(kind, split, num_samples=600) for split in ("train", "val", "test")]
    rows = np.concatenate([x for x, _ in splits])
    assert len(np.unique(rows, axis=0)) == len(rows) == 600
    for _, y in splits:
        counts = np.bincount(y)
        assert counts.max() - counts.min() <= 1
    for split, (x, y) in zip(("train", "val", "test"), splits, strict=True):
        again_x, again_y = arrays(kind, split, num_samples=600)
        np.testing.assert_array_equal(x, again_x)
        np.testing.assert_array_equal(y, again_y)
    assert not np.array_equal(splits[0][0], arrays(kind, num_samples=600, seed=1)[0])


def test_a_fraction_of_zero_leaves_the_split_out() -> None:
    data = Points("moons", 8, 8, num_samples=100, test_fraction=0.0)
    assert [name for name, _ in data.splits()] == ["train", "val"]


def test_curves_without_noise() -> None:
    x, y = arrays("circles", noise=0.0)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.where(y == 0, 1.0, 0.5), atol=1e-6)
    x, y = arrays("xor", noise=0.0)
    np.testing.assert_array_equal(np.abs(x), 1)
    np.testing.assert_array_equal(x[:, 0] * x[:, 1] > 0, y == 0)
    x, y = arrays("moons", noise=0.0)
    centres = np.where(y[:, None] == 0, [-0.5, -0.25], [0.5, 0.25])
    np.testing.assert_allclose(np.linalg.norm(x - centres, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(x[:, 1] - centres[:, 1] >= 0, y == 0)
    x, y = arrays("blobs", noise=0.0, num_classes=4)
    np.testing.assert_allclose(x, np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])[y], atol=1e-6)
    x, y = arrays("spirals", noise=0.0, num_classes=2)
    radius, turn = np.linalg.norm(x, axis=1), np.arctan2(x[:, 1], x[:, 0]) / (2 * np.pi)
    remainder = np.mod(turn - 0.75 * radius - y / 2 + 0.5, 1) - 0.5
    np.testing.assert_allclose(remainder, 0, atol=1e-5)
    assert 0.1 <= radius.min() < radius.max() <= 1


def test_noise_is_a_standard_deviation() -> None:
    x, y = arrays("blobs", num_samples=20_000, noise=0.3)
    clean = arrays("blobs", num_samples=20_000, noise=0.0)[0]
    assert (x - clean).std(0) == pytest.approx([0.3, 0.3], rel=0.03)
    assert np.bincount(y).min() == np.bincount(y).max()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blobs_are_linearly_separable_and_the_others_are_not(seed: int) -> None:
    settings = {"blobs": 0.25, "circles": 0.08, "moons": 0.12, "xor": 0.25, "spirals": 0.03}
    for kind, noise in settings.items():
        x, y = arrays(kind, noise=noise, seed=seed)
        test_x, test_y = arrays(kind, "test", noise=noise, seed=seed)
        linear = LogisticRegression().fit(x, y).score(test_x, test_y)
        local = KNeighborsClassifier(5).fit(x, y).score(test_x, test_y)
        assert linear > 0.98 if kind == "blobs" else linear < 0.93, (kind, linear)
        assert local > 0.98, (kind, local)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "moons", "noise": -0.1}, r"data.noise=-0.1 is a standard deviation: it must be at least 0"),
        ({"kind": "circles", "num_classes": 3}, r"data.num_classes=3, but circles has 2 classes; set it to null"),
        ({"kind": "spirals", "num_classes": 1}, r"data.num_classes=1, but spirals needs at least 2 classes"),
        ({"kind": "moons", "in_dim": 3}, r"data.in_dim=3, but points of the plane have 2 coordinates"),
        ({"kind": "moons", "num_samples": 10, "val_fraction": 0.5, "test_fraction": 0.5}, r"training needs at least 2"),
        ({"kind": "moons", "val_fraction": -0.1}, r"val_fraction=-0.1 .* from 0 up"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Points(global_batch_size=8, micro_batch_size=8, **settings)
