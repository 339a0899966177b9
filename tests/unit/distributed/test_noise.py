import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from scaledl.distributed.noise import Noise, _mix

LIKELY = 1e-4  # a fixed seed either passes for ever or not at all
WORD = 2**62  # integers below it are a word without its two highest bits

DRAWS = {
    "uniform": lambda noise: noise.uniform("x", 5, 3),
    "uniform of a scalar": lambda noise: noise.uniform("x"),
    "uniform64": lambda noise: noise.uniform("x", 7, dtype=torch.float64),
    "uniform16": lambda noise: noise.uniform("x", 7, dtype=torch.bfloat16),
    "normal": lambda noise: noise.normal("x", 5, 3),
    "normal of a scalar": lambda noise: noise.normal("x"),
    "normal64": lambda noise: noise.normal("x", 7, dtype=torch.float64),
    "integers": lambda noise: noise.integers("x", 1000, 7),
    "bernoulli": lambda noise: noise.bernoulli("x", 0.5, 64),
    "permutation": lambda noise: noise.permutation("x", 11),
}
draws = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def at(*positions, seed=0):
    return Noise(seed, torch.tensor(positions, dtype=torch.int64))


def span(count, seed=0, stride=1):
    return Noise(seed, torch.arange(count) * stride)


@draws
def test_numbers_do_not_depend_on_the_split_of_the_batch(draw):
    positions = torch.arange(100, 124)
    whole = draw(Noise(7, positions))
    for size in (1, 2, 5, 12):
        parts = [draw(Noise(7, part)) for part in positions.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)


@draws
def test_numbers_do_not_depend_on_the_order_of_samples_or_of_draws(draw):
    positions = torch.arange(24)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    noise = Noise(7, positions[order])
    noise.uniform("another", 100)
    torch.testing.assert_close(draw(noise), draw(Noise(7, positions))[order], rtol=1e-6, atol=1e-6)


@draws
def test_positions_and_seeds_each_give_numbers_of_their_own(draw):
    first, other = draw(span(64, seed=0)), draw(span(64, seed=1))
    assert not torch.equal(first, other)
    assert len(first.flatten(1 if first.dim() > 1 else 0).unique(dim=0)) > 48
    assert (first == other).float().mean() < 0.6


def test_names_separate_draws():
    noise = span(4)
    numbers = torch.stack([noise.uniform(name, 50) for name in ("eps", "t", "mask", "crop", "eps2", "")])
    assert len(numbers.unique()) == numbers.numel()
    assert torch.equal(noise.uniform("eps", 50), numbers[0])


def test_extreme_positions_and_seeds_are_as_good_as_others():
    positions = [0, 1, 2**31, 2**32, 2**62, 2**62 + 1, 2**63 - 1]
    seeds = [0, 1, -1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 123456789123456789]
    words = torch.cat([at(*positions, seed=seed).integers("x", WORD, 100) for seed in seeds])
    assert len(words.unique()) == words.numel()
    assert stats.kstest(words.flatten().double() / WORD, "uniform").pvalue > LIKELY


def test_arguments_are_not_changed_and_no_global_generator_is_touched():
    positions, state = torch.arange(5), torch.random.get_rng_state()
    Noise(0, positions).normal("x", 10)
    assert positions.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(torch.random.get_rng_state(), state)


# -- are the numbers random? each order below puts other neighbours side by side -------------------------------------

ORDERS = {
    "elements": lambda: at(0).integers("x", WORD, 2**17),
    "positions": lambda: span(2**17).integers("x", WORD),
    "distant positions": lambda: span(2**17, stride=2**45).integers("x", WORD),
    "elements of positions": lambda: span(2**10).integers("x", WORD, 2**7),
    "positions of elements": lambda: span(2**10).integers("x", WORD, 2**7).T,
    "seeds": lambda: torch.stack([span(64, seed).integers("x", WORD, 2) for seed in range(2**10)]).movedim(0, 2),
    "distant seeds": lambda: torch.stack([span(64, s << 54).integers("x", WORD, 2) for s in range(2**10)]).movedim(
        0, 2
    ),
    "names": lambda: torch.stack([span(64).integers(f"block{i}", WORD, 2) for i in range(2**10)]).movedim(0, 2),
}
ORDERS = {name: functools.cache(order) for name, order in ORDERS.items()}
orders = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


def evenness(values, kinds):
    return stats.chisquare(np.bincount(values, minlength=kinds)).pvalue


@orders
@pytest.mark.parametrize("shift", [0, 27, 54], ids=["low", "middle", "high"])
def test_bits_are_even_alone_and_in_pairs(order, shift):
    octets = (order().flatten().numpy() >> shift) & 255
    nibbles = octets & 15
    assert evenness(octets, 256) > LIKELY
    assert evenness(nibbles[:-1:2] * 16 + nibbles[1::2], 256) > LIKELY
    assert evenness(octets[:-2] >> 4 << 8 | nibbles[1:-1] << 4 | nibbles[2:], 4096) > LIKELY


@orders
@pytest.mark.parametrize("lag", [1, 2, 128])
def test_each_bit_differs_from_its_neighbours_half_the_time(order, lag):
    words = order().flatten()
    changed = words[lag:] ^ words[:-lag]
    octets = changed.view(torch.uint8).view(-1, 8).numpy()
    counts = torch.from_numpy(np.unpackbits(octets, axis=1, bitorder="little").sum(axis=0, dtype=np.int64))[:62]
    sigmas = (counts - len(changed) / 2) / math.sqrt(len(changed) / 4)
    assert sigmas.abs().max() < 5
    assert stats.kstest(sigmas, "norm").pvalue > LIKELY


@orders
def test_words_do_not_repeat(order):
    words = order()
    assert len(words.unique()) == words.numel()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("seed", [0, 1])
def test_consecutive_positions_are_uncorrelated(kind, seed):
    numbers = getattr(span(65, seed), kind)("x", 4096, dtype=torch.float64)
    correlations = torch.corrcoef(numbers)[~torch.eye(65, dtype=torch.bool)]
    assert correlations.abs().max() * math.sqrt(4096) < 5
    elements = torch.corrcoef(numbers.T[:128])[~torch.eye(128, dtype=torch.bool)]
    assert elements.abs().max() * math.sqrt(65) < 5


SHAPES = pytest.mark.parametrize(("batch", "count"), [(1, 300_000), (300_000, 1), (1001, 299)])


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_is_uniform(batch, count, dtype):
    x = span(batch, seed=5).uniform("u", count, dtype=dtype).flatten().double()
    assert abs(x.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / len(x))
    assert abs(x.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / len(x))
    assert stats.kstest(x, "uniform").pvalue > LIKELY


@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_is_normal(batch, count, dtype):
    x = span(batch, seed=5).normal("n", count, dtype=dtype).flatten().double()
    assert abs(x.mean()) < 5 * math.sqrt(1 / len(x))
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / len(x))
    assert abs(stats.skew(x)) < 5 * math.sqrt(6 / len(x))
    assert abs(stats.kurtosis(x)) < 5 * math.sqrt(24 / len(x))
    assert stats.kstest(x, "norm").pvalue > LIKELY


def test_the_two_normals_of_a_pair_are_independent():
    first, second = span(2).normal("n", 400_000).view(2, 2, -1).movedim(1, 0)
    angle = torch.atan2(second, first).flatten() / (2 * math.pi) + 0.5
    radius = torch.exp(-(first**2 + second**2) / 2).flatten()
    assert evenness((angle * 16).long().clamp(max=15) * 16 + (radius * 16).long().clamp(max=15), 256) > LIKELY


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_uniform_reaches_both_ends_but_not_one(dtype):
    x = at(0).uniform("u", 10**6, dtype=dtype)
    assert x.dtype == dtype
    assert 0 <= x.min() < 1e-5
    assert 1 - 2 * torch.finfo(dtype).eps - 1e-5 < x.max() < 1
    assert abs(x.double().mean() - 0.5) < 5 * math.sqrt(1 / 12 / 10**6)


def test_the_largest_and_smallest_bits_give_numbers_in_range(monkeypatch):
    extremes = torch.tensor([[-(2**63), -1, 0, 2**63 - 1, 2**31 - 1, -(2**31), 2**31, -(2**32)]])
    monkeypatch.setattr(Noise, "_words", lambda self, name, count: extremes[:, :count].clone())
    for dtype, count in [(torch.float64, 8), (torch.float32, 16), (torch.float16, 16), (torch.bfloat16, 16)]:
        uniform, normal = at(0).uniform("x", count, dtype=dtype), at(0).normal("x", count, dtype=dtype)
        assert uniform.min() == 0
        assert uniform.max() == 1 - max(torch.finfo(dtype).eps / 2, 2.0**-24 if dtype != torch.float64 else 0)
        assert normal.isfinite().all()
        assert normal.abs().max() > 6.6
    assert at(0).integers("x", 7, 8).min() >= 0
    assert not at(0).bernoulli("x", 0.0, 16).any()
    assert at(0).bernoulli("x", 1.0, 16).all()


def test_ten_million_normals_are_finite():
    x = at(0).normal("n", 10**7)
    assert x.isfinite().all()
    assert abs(x.var() - 1) < 5 * math.sqrt(2e-7)
    tails = (x.abs() > 4.5).sum().item()
    assert abs(tails - 68) < 5 * math.sqrt(68)  # 1e7 * P(|x| > 4.5)


@pytest.mark.parametrize("high", [1, 2, 7, 1000])
def test_integers_are_even(high):
    x = span(500).integers("i", high, 400)
    assert x.dtype == torch.int64
    assert x.max() == high - 1
    if high > 1:
        assert evenness(x.flatten(), high) > LIKELY
    if high == 7:
        assert evenness((x[:, ::2] * 7 + x[:, 1::2]).flatten(), 49) > LIKELY
        assert evenness((x[::2] * 7 + x[1::2]).flatten(), 49) > LIKELY


@pytest.mark.parametrize("high", [3 * 2**29, 2**31, 3 * 2**40, 2**63 - 1])
def test_integers_below_a_large_bound_are_even(high):
    x = span(100).integers("i", high, 1000).flatten()
    assert 0 <= x.min() < high // 1000
    assert high - high // 1000 < x.max() < high
    assert stats.kstest(x.double() / high, "uniform").pvalue > LIKELY


@pytest.mark.parametrize("p", [0.0, 0.15, 0.5, 1.0])
def test_bernoulli_is_true_with_probability_p(p):
    x = span(500).bernoulli("b", p, 1000)
    assert x.dtype == torch.bool
    assert abs(x.double().mean() - p) <= 5 * math.sqrt(p * (1 - p) / x.numel())


@pytest.mark.parametrize("length", [0, 1, 2, 7, 1000])
def test_permutations_are_permutations(length):
    orders = span(50).permutation("p", length)
    assert orders.shape == (50, length)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(length).expand(50, -1))


def test_all_permutations_are_equally_likely():
    orders = span(48_000).permutation("p", 4)
    kinds, counts = orders.unique(dim=0, return_counts=True)
    assert len(kinds) == 24
    assert stats.chisquare(counts).pvalue > LIKELY


@draws
def test_an_empty_batch_draws_nothing(draw):
    empty, one = draw(at()), draw(at(0))
    assert (empty.shape, empty.dtype) == ((0, *one.shape[1:]), one.dtype)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 2)])
def test_shapes(shape):
    noise = span(3)
    for drawn in (noise.uniform("x", *shape), noise.normal("x", *shape), noise.integers("x", 9, *shape)):
        assert drawn.shape == (3, *shape)


def test_the_hash_is_splitmix64():
    """The outputs that are published with the algorithm for the seed 1234567."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden + 2**63) % 2**64 - 2**63 for i in range(1, 6)]
    assert [word % 2**64 for word in _mix(torch.tensor(states)).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_the_stream_has_not_changed():
    """Another stream would silently change every run that resumes: if this fails, the code is wrong, not the test."""
    noise = at(0, 2**40 + 3, seed=42)
    assert noise.integers("golden", WORD, 2).tolist() == [
        [506587366094586493, 3070776074787155551],
        [1724980150557895497, 2640665497946932582],
    ]
    assert (noise.uniform("golden", 3) * 2**24).tolist() == [[246978, 460738, 8549614], [4102763, 14151772, 1032645]]
    assert (noise.uniform("golden", dtype=torch.float64) * 2**53).tolist() == [247357112350872, 7597674905195341]
    assert noise.permutation("golden", 6).tolist() == [[0, 3, 5, 2, 1, 4], [5, 1, 2, 4, 3, 0]]
    assert noise.bernoulli("golden", 0.5, 8).int().tolist() == [[1, 1, 0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 1, 0, 1]]
    expected = torch.tensor([[2.6504817, 2.0848003, 0.1600128], [-1.1076754, -0.5389865, -0.4510908]])
    torch.testing.assert_close(noise.normal("golden", 3), expected, rtol=1e-5, atol=1e-5)


def test_numbers_survive_compilation():
    def everything(positions):
        return [DRAWS[kind](Noise(3, positions)) for kind in ("uniform", "normal64", "permutation")]

    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.arange(5)), everything(torch.arange(5)), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@draws
def test_numbers_do_not_depend_on_the_device(draw):
    positions = torch.arange(1000)
    here, there = draw(Noise(3, positions)), draw(Noise(3, positions.cuda()))
    assert there.is_cuda
    exact = draw not in (DRAWS["normal"], DRAWS["normal of a scalar"], DRAWS["normal64"])
    torch.testing.assert_close(there.cpu(), here, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


@pytest.mark.parametrize("positions", [torch.arange(4).float(), torch.arange(4).int(), torch.zeros(2, 2).long()])
def test_refuses_positions_that_are_not_one_int64_a_sample(positions):
    with pytest.raises(ValueError, match=r"pass a tensor of shape \(B,\)"):
        Noise(0, positions)


@pytest.mark.parametrize("high", [0, -1, 2**63])
def test_refuses_an_empty_range(high):
    with pytest.raises(ValueError, match=f"high={high}; .* choose high"):
        at(0).integers("x", high)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match=f"p={p} is no probability"):
        at(0).bernoulli("x", p)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_refuses_a_dtype_without_fractions(kind):
    with pytest.raises(ValueError, match=r"dtype=torch\.int64 holds no fractions"):
        getattr(at(0), kind)("x", dtype=torch.int64)
