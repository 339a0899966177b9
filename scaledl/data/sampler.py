"""Which samples make up a batch: a function of (seed, epoch) alone, never of the number of ranks.

Training reads one endless line of positions 0, 1, 2, ... The sample at position p is `permutation(epoch)[p mod N]` with
`epoch = p // N`, so every sample comes once an epoch, no remainder is dropped, and the whole state of the data is the
number of positions already read.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

OfSamples = Callable[[np.ndarray], np.ndarray]  # a number for each sample, by indices (n,)

Order = Callable[[np.ndarray, int], np.ndarray]  # samples (n,), by positions (n,) and a seed

_ROUNDS = 4
_TOGETHER = 4096  # positions permuted in one call, which for few costs a tenth of a millisecond


def _mix(value: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit finaliser (splitmix64, Steele et al. 2014) over `value + key`."""
    x = value + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(index: np.ndarray, size: int, *key: int) -> np.ndarray:
    """`index` (any shape, values in [0, size)) under a random permutation of [0, size) drawn from `key` (seed, epoch).

    A Feistel network with cycle walking: constant memory, so that a trillion-token corpus shuffles like a toy.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    keys = np.random.SeedSequence(key).generate_state(_ROUNDS, np.uint64)

    def feistel(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, int(key)) & mask)
        return (left << half) | right

    with np.errstate(over="ignore"):
        result = feistel(np.asarray(index, dtype=np.uint64))
        while (outside := result >= size).any():
            result[outside] = feistel(result[outside])
    return result.astype(np.int64)


def permute_blocks(index: np.ndarray, size: int, within: int, *key: int) -> np.ndarray:
    """`index` under a permutation of [0, size) that moves blocks of `within` neighbours as wholes, and each in itself.

    Neighbours in the order come from one block, so that a block is all that must be at hand; it is an order still, a
    function of `key` alone. What is left after the last whole block comes last.
    """
    turns, places = np.divmod(np.asarray(index, np.int64), within)
    blocks, whole = turns.copy(), size // within
    if whole:
        blocks[turns < whole] = permute(turns[turns < whole], whole, *key)
    for block in np.unique(blocks):
        here = blocks == block
        places[here] = permute(places[here], min(within, size - int(block) * within), *key, int(block) + 1)
    return blocks * within + places


def endless(positions: np.ndarray, size: int, seed: int, within: int | None = None) -> np.ndarray:
    """The samples (n,) at `positions` (n,) of the endless line in which each of `size` samples comes once an epoch."""
    epochs, places = np.divmod(positions, size)
    samples = np.empty_like(places)
    for epoch in np.unique(epochs):
        here, key = epochs == epoch, (seed, int(epoch))
        samples[here] = (
            permute_blocks(places[here], size, within, *key) if within else permute(places[here], size, *key)
        )
    return samples


class TrainBatches(Sampler[np.ndarray]):
    """The sample indices of each micro-batch of one rank, endless, from position `start` on.

    Global batch b covers global_batch_size positions from start + b * global_batch_size on; each rank takes a
    contiguous share of it, in micro-batches. The union over ranks is the same for every world size.

    Args:
        shuffled: by `permute`; else position p is sample p mod N.
        order: the samples at positions (n,) under a seed, for data that has an order of its own.
        lengths: of samples by their indices (n,). A global batch is then sorted by it and dealt out micro-batch by
            micro-batch over the ranks, so that those in one need little padding.
        weights: how many things the mean over a sample counts (see `weight_share`), by indices (n,); None: one.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        micro_batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        shuffled: bool = True,
        order: Order | None = None,
        lengths: OfSamples | None = None,
        weights: OfSamples | None = None,
    ):
        self.num_samples, self.seed, self.start, self.shuffled = num_samples, seed, start, shuffled
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.rank, self.world_size, self.share = rank, world_size, global_batch_size // world_size
        self.order, self.lengths, self.weights = order, lengths, weights

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """Sample indices (n,) at stream `positions` (n,)."""
        if self.order is not None:
            return self.order(positions, self.seed)
        return endless(positions, self.num_samples, self.seed) if self.shuffled else positions % self.num_samples

    def positions(self, index: int) -> np.ndarray:
        """Where in the endless line the samples of this rank's micro-batch `index` stand, (micro_batch_size,)."""
        step, number = divmod(index, self.share // self.micro_batch_size)
        if self.lengths is None:
            first = self.start + step * self.global_batch_size + self.rank * self.share
            return np.arange(self.micro_batch_size) + first + number * self.micro_batch_size
        together = self._global_batch(step)
        ordered = together[np.argsort(self.lengths(self.samples_at(together)), kind="stable")]
        return ordered.reshape(-1, self.micro_batch_size)[number * self.world_size + self.rank]

    def weight_share(self, index: int) -> float:
        """By how much this rank's micro-batch `index` weighs more than the average one of its global batch.

        Means over micro-batches, times this, average to the mean over the global batch.
        """
        if self.weights is None:
            return 1.0
        together = self._global_batch(index // (self.share // self.micro_batch_size))
        average = self.weights(self.samples_at(together)).mean()
        return float(self.weights(self.samples_at(self.positions(index))).mean() / average) if average else 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        if self.lengths is not None:
            yield from (self.samples_at(self.positions(index)) for index in itertools.count())
        steps = max(1, _TOGETHER // self.share)
        positions = np.add.outer(np.arange(steps) * self.global_batch_size, np.arange(self.share))  # (steps, share)
        positions += self.start + self.rank * self.share
        while True:
            yield from self.samples_at(positions.ravel()).reshape(-1, self.micro_batch_size)
            positions += steps * self.global_batch_size

    def _global_batch(self, step: int) -> np.ndarray:
        return np.arange(self.global_batch_size) + self.start + step * self.global_batch_size


class EvalBatches(Sampler[np.ndarray]):
    """Every sample once, in order; rank r takes each `world_size`-th batch.

    All ranks take equally many: where the batches run out, the last ranks take the first one again (see `repeats`).

    Args:
        limit: only the first so many batches; of each part its share of them.
        begins: the first samples of parts; no batch holds samples of two.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        begins: Sequence[int] = (0,),
    ):
        self.rank, self.world_size, self.begins = rank, world_size, np.asarray(begins)
        ends = [*begins[1:], num_samples]
        firsts = [np.arange(begin, end, batch_size) for begin, end in zip(begins, ends, strict=True)]
        if limit:
            firsts = [first[: max(1, limit // len(firsts))] for first in firsts]
        self.firsts = np.concatenate(firsts)
        self.lasts = np.minimum(
            self.firsts + batch_size,
            np.repeat(ends, [len(first) for first in firsts]),
        )
        self.num_batches = len(self.firsts)

    def __len__(self) -> int:
        return -(-self.num_batches // self.world_size)

    def repeats(self, index: int) -> bool:
        """Whether this rank's batch `index` only fills up, and must not be counted."""
        return index * self.world_size + self.rank >= self.num_batches

    def positions(self, index: int) -> torch.Tensor:
        """Which samples this rank's batch `index` holds, (B,) int64."""
        batch = 0 if self.repeats(index) else index * self.world_size + self.rank
        return torch.arange(int(self.firsts[batch]), int(self.lasts[batch]))

    def part(self, index: int) -> int:
        """Which part this rank's batch `index` belongs to."""
        return int(np.searchsorted(self.begins, int(self.positions(index)[0]), side="right")) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(len(self)):
            yield self.positions(index).numpy()
