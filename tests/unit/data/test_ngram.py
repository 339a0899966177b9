import math

import numpy as np
import pytest

from scaledl.data.ngram import ngram_floor


def test_against_the_formula_by_hand():
    # train "aab", val "ab": p1(a) = (2 + 2/2)/(3 + 2), p1(b) = (1 + 2/2)/(3 + 2);
    # p2(a|b): b was never a context, so p1(a); p2(b|a) = (1 + 2 p1(b))/(2 + 2)
    p_a, p_b = 3 / 5, 2 / 5
    bigram = -(math.log(p_a) + math.log((1 + 2 * p_b) / 4)) / 2
    train, val = np.array([0, 0, 1]), np.array([0, 1])
    assert ngram_floor(train, val, order=1) == pytest.approx(-(math.log(p_a) + math.log(p_b)) / 2)
    assert ngram_floor(train, val, order=2) == pytest.approx(bigram)


def test_probabilities_sum_to_one():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 4, 200)
    for context in ([0, 1], [2, 3]):
        # the loss of context + w minus the loss of the context alone is -log p(w | context)
        def total(tail, context=context):
            ids = np.array([*context, *tail])
            return ngram_floor(np.append(train, 3), np.append(ids, []), order=3) * len(ids)

        assert sum(math.exp(-(total([w]) - total([]))) for w in range(4)) == pytest.approx(1)


def test_finds_the_order_of_a_markov_chain_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    chain = [0, 1]
    for noise in rng.random(20_000):
        chain.append((chain[-1] + chain[-2]) % 7 if noise < 0.9 else int(noise * 1e6) % 7)
    chain = np.array(chain)
    losses = [ngram_floor(chain[:18_000], chain[18_000:], order) for order in (1, 2, 3)]
    assert losses[1] > 1.8 > 0.75 > losses[2]
    noise = rng.integers(0, 7, 20_000)
    assert ngram_floor(noise[:18_000], noise[18_000:], 3) == pytest.approx(math.log(7), abs=0.03)
