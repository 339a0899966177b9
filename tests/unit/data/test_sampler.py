import numpy as np
import pytest

from scaledl.data.sampler import EvalBatches, TrainBatches, endless, permute, permute_blocks


def first(batches, number):
    stream = iter(batches)
    return [next(stream) for _ in range(number)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 255, 256, 257, 1000, 4097])
def test_permutation_is_a_bijection(size):
    for seed, epoch in [(0, 0), (0, 1), (7, 3)]:
        assert sorted(permute(np.arange(size), size, seed, epoch)) == list(range(size))


def test_permutation_depends_on_seed_and_epoch_and_leaves_no_order():
    index = np.arange(1000)
    orders = [permute(index, 1000, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for a, order in enumerate(orders):
        assert abs(np.corrcoef(index, order)[0, 1]) < 0.1
        for other in orders[a + 1 :]:
            assert (order == other).mean() < 0.05


def test_permutation_of_a_huge_corpus_costs_nothing():
    size = 10**12
    drawn = permute(np.arange(1000), size, 0, 0)
    assert len(set(drawn.tolist())) == 1000
    assert 0 <= drawn.min() < size // 10 < size * 9 // 10 < drawn.max() < size


@pytest.mark.parametrize("start", [0, 24])
def test_global_batches_do_not_depend_on_ranks(start):
    def global_batches(world_size, micro):
        passes = 24 // world_size // micro
        ranks = [
            first(TrainBatches(50, 24, micro, seed=3, rank=rank, world_size=world_size, start=start), 5 * passes)
            for rank in range(world_size)
        ]
        return [
            np.concatenate([micro for batches in ranks for micro in batches[b * passes : (b + 1) * passes]])
            for b in range(5)
        ]

    expected = global_batches(1, 24)
    assert len({tuple(batch) for batch in expected}) == 5
    for world_size, micro in [(1, 6), (2, 12), (2, 3), (4, 6), (4, 2)]:
        np.testing.assert_array_equal(global_batches(world_size, micro), expected)


def test_start_continues_where_a_run_stopped():
    whole = first(TrainBatches(50, 8, 4, seed=1), 20)
    resumed = first(TrainBatches(50, 8, 4, seed=1, start=5 * 8), 10)
    np.testing.assert_array_equal(whole[10:], resumed)


def test_each_sample_comes_once_an_epoch():
    samples = np.concatenate(first(TrainBatches(50, 8, 8, seed=1), 25))  # 200 positions = 4 epochs of 50
    for epoch in samples.reshape(4, 50):
        assert sorted(epoch) == list(range(50))


def evaluated(num_samples, world_size, limit=None):
    """(batches that count, in the order of one rank; all ranks' lists of batches)."""
    ranks = [EvalBatches(num_samples, 4, rank=rank, world_size=world_size, limit=limit) for rank in range(world_size)]
    batches = [[batch.tolist() for batch in of_rank] for of_rank in ranks]
    counted = [
        batches[rank][index]
        for index in range(len(ranks[0]))
        for rank in range(world_size)
        if not ranks[rank].repeats(index)
    ]
    return counted, batches


@pytest.mark.parametrize("limit", [None, 1, 3, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_samples", [1, 7, 16, 50])
def test_evaluation_counts_each_sample_once_in_the_same_batches_on_any_number_of_ranks(num_samples, world_size, limit):
    counted, batches = evaluated(num_samples, world_size, limit)
    in_order = [list(range(first, min(first + 4, num_samples))) for first in range(0, num_samples, 4)]
    assert counted == in_order[:limit]
    assert len({len(of_rank) for of_rank in batches}) == 1  # or a sharded model would wait for ever
    assert all(batch for of_rank in batches for batch in of_rank)


def test_a_rank_without_a_batch_takes_the_first_one_again():
    batches = EvalBatches(9, 4, rank=1, world_size=2)
    assert [batches.repeats(index) for index in range(len(batches))] == [False, True]
    assert batches.positions(1).tolist() == [0, 1, 2, 3]


LENGTHS = np.random.default_rng(0).integers(1, 20, 50)


def of_sample(indices):
    return LENGTHS[indices].astype(float)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 24), (1, 4), (2, 6), (4, 3)])
def test_sorted_global_batches_hold_the_same_samples_and_little_padding(world_size, micro):
    passes = 24 // world_size // micro
    plain = first(TrainBatches(50, 24, 24, seed=3), 5)
    ranks = [
        TrainBatches(50, 24, micro, seed=3, rank=rank, world_size=world_size, lengths=of_sample)
        for rank in range(world_size)
    ]
    fed = [first(batches, 5 * passes) for batches in ranks]
    for step in range(5):
        in_order = [fed[rank][step * passes + number] for number in range(passes) for rank in range(world_size)]
        assert sorted(np.concatenate(in_order)) == sorted(plain[step])
        lengths = LENGTHS[np.concatenate(in_order)]
        assert (np.diff(lengths) >= 0).all()
    for batches, of_rank in zip(ranks, fed, strict=True):
        for index, indices in enumerate(of_rank):
            np.testing.assert_array_equal(batches.samples_at(batches.positions(index)), indices)


@pytest.mark.parametrize("lengths", [None, of_sample])
def test_weighted_means_of_micro_batches_average_to_the_mean_of_the_global_batch(lengths):
    values = np.random.default_rng(1).normal(size=50)
    for step in range(3):
        found = []
        for rank in range(2):
            batches = TrainBatches(50, 24, 4, seed=3, rank=rank, world_size=2, lengths=lengths, weights=of_sample)
            for index in range(3 * step, 3 * step + 3):
                chosen = batches.samples_at(batches.positions(index))
                mean = np.average(values[chosen], weights=LENGTHS[chosen])
                found.append(mean * batches.weight_share(index))
        whole = first(TrainBatches(50, 24, 24, seed=3), step + 1)[step]
        assert np.mean(found) == pytest.approx(np.average(values[whole], weights=LENGTHS[whole]))


def test_without_shuffling_the_order_is_that_of_the_samples():
    batches = first(TrainBatches(10, 4, 2, seed=3, shuffled=False), 6)
    assert np.concatenate(batches).tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(("size", "within"), [(100, 7), (100, 10), (5, 10), (1, 1), (101, 100), (64, 1)])
def test_blocks_are_moved_as_wholes_and_shuffled_within(size, within):
    order = permute_blocks(np.arange(size), size, within, 3, 0)
    assert sorted(order) == list(range(size))
    for first in range(0, size, within):
        block = order[first : first + within]
        assert len(set(block // within)) == 1
    np.testing.assert_array_equal(permute_blocks(np.arange(size)[::-1], size, within, 3, 0), order[::-1])
    if size == 100:
        assert list(order[::within] // within) != list(range(-(-size // within)))
        assert list(order[:within] % within) != list(order[within : 2 * within] % within)
        assert list(permute_blocks(np.arange(size), size, within, 3, 1)) != list(order)


def test_an_endless_line_has_each_sample_once_an_epoch():
    for within in (None, 8):
        line = endless(np.arange(150), 50, 3, within)
        assert [sorted(line[epoch * 50 : epoch * 50 + 50]) for epoch in range(3)] == [list(range(50))] * 3
        np.testing.assert_array_equal(endless(np.arange(70, 90), 50, 3, within), line[70:90])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_batch_holds_samples_of_two_parts(world_size):
    ranks = [EvalBatches(20, 4, rank=rank, world_size=world_size, begins=[0, 6, 13]) for rank in range(world_size)]
    counted = {}
    for index in range(len(ranks[0])):
        for rank, batches in enumerate(ranks):
            if not batches.repeats(index):
                counted[index * world_size + rank] = (batches.part(index), batches.positions(index).tolist())
    found = [counted[number] for number in sorted(counted)]
    assert [part for part, _ in found] == [0, 0, 1, 1, 2, 2]
    assert [positions for _, positions in found] == [
        [0, 1, 2, 3],
        [4, 5],
        [6, 7, 8, 9],
        [10, 11, 12],
        [13, 14, 15, 16],
        [17, 18, 19],
    ]
    limited = EvalBatches(20, 4, limit=3, begins=[0, 6, 13])
    assert [limited.part(index) for index in range(len(limited))] == [0, 1, 2]
