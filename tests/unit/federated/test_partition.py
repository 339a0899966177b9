"""Every sample goes to one client, as evenly or unevenly as asked."""

import numpy as np
import pytest

from scaledl.federated.partition import IID, Dirichlet, Partition, Shards

LABELS = np.random.default_rng(0).integers(0, 10, 1293)


def classes_of(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Shares of the classes in each part, (K, 10)."""
    return [np.bincount(LABELS[part], minlength=10) / len(part) for part in parts]


@pytest.mark.parametrize("partition", [IID(), Dirichlet(0.5), Shards(2), Shards(3)])
@pytest.mark.parametrize("num_clients", [1, 10, 13])
def test_every_sample_has_one_client(partition: Partition, num_clients: int) -> None:
    parts = partition(LABELS, num_clients, seed=3)
    assert len(parts) == num_clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    again, other = partition(LABELS, num_clients, seed=3), partition(LABELS, num_clients, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert num_clients == 1 or not all(np.array_equal(a, b) for a, b in zip(parts, other, strict=True))


def test_iid_clients_are_of_one_size_and_hold_all_classes() -> None:
    parts = IID()(LABELS, 10, seed=0)
    assert {len(part) for part in parts} == {129, 130}
    assert min(share.min() for share in classes_of(parts)) > 0.02


def test_two_shards_hold_few_classes() -> None:
    parts = Shards(2)(LABELS, 10, seed=0)
    assert max((share > 0).sum() for share in classes_of(parts)) <= 4  # a shard may cross from one class to the next
    assert np.mean([np.sort(share)[-2:].sum() for share in classes_of(parts)]) > 0.8


def test_alpha_says_how_uneven_classes_are() -> None:
    even, some, uneven = (
        np.mean([share.max() for share in classes_of(Dirichlet(alpha, 1)(LABELS, 10, seed=0))])
        for alpha in (1e4, 1.0, 0.2)
    )
    assert even < 0.16 < some < uneven - 0.1


def test_a_class_is_divided_by_dirichlets_shares() -> None:
    labels = np.zeros(100_000, np.int64)
    sizes = np.array([[len(part) for part in Dirichlet(2.0, 1)(labels, 5, seed)] for seed in range(200)]) / 100_000
    assert sizes.mean() == pytest.approx(0.2)
    assert sizes.var() == pytest.approx(0.2 * 0.8 / (5 * 2.0 + 1), rel=0.15)  # of a component of Dirichlet(2, ..., 2)


def test_what_cannot_be_dealt_is_said() -> None:
    with pytest.raises(ValueError, match="num_clients=2000 is too many for 1293 samples"):
        IID()(LABELS, 2000, seed=0)
    with pytest.raises(ValueError, match=r"alpha=0.01 left some of 100 clients fewer than min_samples=10"):
        Dirichlet(0.01)(LABELS, 100, seed=0)
    with pytest.raises(ValueError, match="alpha=0 must be above 0"):
        Dirichlet(0)
    with pytest.raises(ValueError, match="shards_per_client=0 must be at least 1"):
        Shards(0)
