import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from scaledl.data.digits import Digits


@pytest.fixture(scope="module")
def splits() -> dict[str, dict[str, torch.Tensor]]:
    return {name: dataset.__getitems__(np.arange(len(dataset))) for name, dataset in Digits(8, 8).splits()}


def test_shapes_types_and_range(splits: dict) -> None:
    assert {name: len(split["y"]) for name, split in splits.items()} == {"train": 1293, "val": 144, "test": 360}
    for split in splits.values():
        assert split["x"].shape[1:] == (1, 8, 8)
        assert (split["x"].dtype, split["y"].dtype) == (torch.float32, torch.int64)
        assert (split["x"].min(), split["x"].max()) == (0, 1)


def test_test_split_is_the_one_that_others_report(splits: dict) -> None:
    images, labels = load_digits(return_X_y=True)
    _, x, _, y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    np.testing.assert_array_equal(splits["test"]["x"].numpy().reshape(-1, 64) * 16, x)
    np.testing.assert_array_equal(splits["test"]["y"].numpy(), y)


def test_splits_are_a_partition_and_stratified(splits: dict) -> None:
    images, labels = load_digits(return_X_y=True)

    def rows(x: np.ndarray) -> list[tuple]:
        return sorted(map(tuple, x.reshape(-1, 64).tolist()))

    together = np.concatenate([split["x"].numpy() for split in splits.values()]) * 16
    assert rows(together) == rows(images)
    for split in splits.values():
        shares = torch.bincount(split["y"]) / len(split["y"])
        np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=0.01)


def test_the_split_does_not_depend_on_the_seed(splits: dict) -> None:
    other = Digits(8, 8, seed=7).split("val")
    assert torch.equal(other.__getitems__(np.arange(144))["x"], splits["val"]["x"])


def test_facts_are_those_of_the_images(splits: dict) -> None:
    x, y = splits["train"]["x"], splits["train"]["y"]
    facts = Digits(8, 8).facts()
    found = {
        "num_classes": len(y.unique()),
        "in_channels": x.shape[1],
        "image_size": x.shape[2],
        "in_dim": x[0].numel(),
    }
    assert facts == found
    assert Digits(8, 8, **facts).facts() == facts


@pytest.mark.parametrize(("name", "fact"), [("num_classes", 10), ("in_channels", 1), ("image_size", 8), ("in_dim", 64)])
def test_a_fact_that_is_not_so_is_refused(name: str, fact: int) -> None:
    with pytest.raises(
        ValueError, match=f"data.{name}=28, but scikit-learn's digits have {name}={fact}; set it to null"
    ):
        Digits(8, 8, **{name: 28})


def test_classes_left_out_are_seen_in_validation_and_test_only() -> None:
    classes = {name: set(dataset.y.tolist()) for name, dataset in Digits(8, 8, leave_out=[3, 9]).splits()}
    assert classes == {"train": set(range(10)) - {3, 9}, "val": set(range(10)), "test": set(range(10))}
    for wrong in ([10], list(range(10))):
        with pytest.raises(ValueError, match=r"data.leave_out=.* must be some of the classes"):
            Digits(8, 8, leave_out=wrong)


def test_nudged_images_are_moved_by_one_pixel(splits: dict) -> None:
    for name, dataset in Digits(8, 8, nudged=True).splits():
        x, y = splits[name]["x"], splits[name]["y"]
        assert torch.equal(dataset.y, y.repeat(5))
        moved = dataset.x.unflatten(0, (5, -1))
        assert torch.equal(moved[0], x)
        for found, axis, by in zip(moved[1:], (2, 2, 3, 3), (1, -1, 1, -1), strict=True):
            expected = x.roll(by, axis)
            expected.select(axis, 0 if by == 1 else 7).zero_()
            assert torch.equal(found, expected)
