"""Which client holds which training samples: the same for all, or as uneven as users' data are."""

from typing import Protocol

import numpy as np

from scaledl.data.base import BatchDataset

READ_TOGETHER = 4096  # samples whose labels are read at once


class Partition(Protocol):
    """Deals samples out to clients."""

    needs_labels: bool

    def __call__(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        """Indices of each client's samples, from labels (N,), which are zeros where the data has none."""
        ...


class IID:
    """Every client draws from the same distribution: a random cut into equal parts."""

    needs_labels = False

    def __call__(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        return _checked(np.array_split(_rng(seed).permutation(len(labels)), num_clients))


class Dirichlet:
    """Each class is divided among clients in shares from Dirichlet(alpha) (Hsu et al. 2019, "Measuring the Effects of
    Non-Identical Data Distribution"; the division by class is that of Yurochkin et al. 2019).

    Args:
        alpha: the smaller, the fewer classes a client holds; towards infinity all clients hold the same.
        min_samples: shares are drawn again until every client has so many.
    """

    needs_labels = True
    tries = 1000

    def __init__(self, alpha: float = 0.5, min_samples: int = 10):
        if alpha <= 0 or min_samples < 1:
            raise ValueError(f"alpha={alpha} must be above 0 and min_samples={min_samples} at least 1")
        self.alpha, self.min_samples = alpha, min_samples

    def __call__(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        rng = _rng(seed)
        for _ in range(self.tries):
            parts: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
            for label in np.unique(labels):
                of_class = rng.permutation(np.flatnonzero(labels == label))
                ends = np.cumsum(rng.dirichlet(np.full(num_clients, self.alpha)))[:-1] * len(of_class)
                for part, indices in zip(parts, np.split(of_class, ends.astype(int)), strict=True):
                    part.append(indices)
            found = [np.concatenate(part) for part in parts]
            if min(map(len, found)) >= self.min_samples:
                return found
        raise ValueError(
            f"alpha={self.alpha} left some of {num_clients} clients fewer than min_samples={self.min_samples} of "
            f"{len(labels)} samples in {self.tries} draws; raise alpha, or lower min_samples or num_clients"
        )


class Shards:
    """Samples sorted by label and cut into equal shards, of which each client gets a few (McMahan et al. 2017, section
    3): with two, most clients know two classes.

    Args:
        shards_per_client: how many a client gets.
    """

    needs_labels = True

    def __init__(self, shards_per_client: int = 2):
        if shards_per_client < 1:
            raise ValueError(f"shards_per_client={shards_per_client} must be at least 1")
        self.shards_per_client = shards_per_client

    def __call__(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        rng, count = _rng(seed), num_clients * self.shards_per_client
        shuffled = rng.permutation(len(labels))  # so that which samples of a class meet in a shard is random
        shards = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], count)
        dealt = rng.permutation(count).reshape(num_clients, -1)
        return _checked([np.concatenate([shards[i] for i in hand]) for hand in dealt])


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, 0])


def _checked(parts: list[np.ndarray]) -> list[np.ndarray]:
    if min(map(len, parts)) == 0:
        raise ValueError(
            f"num_clients={len(parts)} is too many for {sum(map(len, parts))} samples: a client has none; take fewer"
        )
    return parts


def dealt(
    train_set: BatchDataset, partition: Partition, num_clients: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(Labels of the training samples or zeros (N,), indices of each client's).

    Raises:
        ValueError: the partition needs labels, and the data has none.
    """
    every = np.arange(len(train_set))
    labels = np.zeros(len(every), np.int64)
    if partition.needs_labels:
        for first in range(0, len(every), READ_TOGETHER):
            batch = train_set.__getitems__(every[first : first + READ_TOGETHER])
            if "y" not in batch or batch["y"].is_floating_point():
                raise ValueError(
                    f"federation/partition={type(partition).__name__.lower()} divides by class, but this "
                    "data has no class labels y; take federation/partition=iid"
                )
            labels[first : first + READ_TOGETHER] = batch["y"].numpy()
    return labels, partition(labels, num_clients, seed)
