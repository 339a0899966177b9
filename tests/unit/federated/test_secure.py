"""Masks hide each share and leave the sum, whoever is lost."""

import pytest
import torch
from torch import Tensor

from scaledl.federated.aggregate import LIMIT, Plain, from_fixed, to_fixed
from scaledl.federated.secure import Masked, mask, recover, split, x25519

DIM = 400


def shares(num_clients: int) -> list[Tensor]:
    return list(torch.randn(num_clients, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def summed(aggregation: Plain, arrived: list[int], num_clients: int = 7) -> Tensor | None:
    aggregation.begin(list(range(num_clients)), DIM, seed=5, round=2)
    for client in arrived:
        aggregation.receive(aggregation.send(client, shares(num_clients)[client]))
    return aggregation.finish(arrived)


def test_x25519_is_that_of_rfc_7748() -> None:
    scalar = bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    point = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    assert x25519(scalar, point).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert x25519(b"a" * 32, x25519(b"b" * 32)) == x25519(b"b" * 32, x25519(b"a" * 32))
    key = (9).to_bytes(32, "little")  # section 5.2: the point and the scalar are 9, once around
    assert x25519(key, key).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"


def test_any_threshold_of_shares_recover_a_secret_and_fewer_do_not() -> None:
    secret = 2**255 + 12345
    found = split(secret, 3, [1, 2, 5, 9], b"seed")
    for points in ([1, 2, 5], [9, 2, 1], [1, 2, 5, 9]):
        assert recover({point: found[point] for point in points}) == secret
    assert recover({point: found[point] for point in [1, 9]}) != secret
    assert found != split(secret, 3, [1, 2, 5, 9], b"other")


@pytest.mark.parametrize("arrived", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 3, 4, 6], [2, 3, 4, 5, 6]])
def test_the_sum_is_that_without_masks_to_the_bit(arrived: list[int]) -> None:
    masked, plain = summed(Masked(0.7), arrived), summed(Plain(), arrived)
    assert torch.equal(masked, plain)
    assert torch.allclose(plain, sum(shares(7)[client] for client in arrived), atol=7 * 2.0**-41, rtol=0)


def test_too_few_arrivals_open_nothing() -> None:
    assert summed(Masked(0.7), [0, 1, 2, 3]) is None
    assert summed(Masked(0.7), []) is None


def test_a_message_says_nothing_of_the_share() -> None:
    aggregation = Masked()
    aggregation.begin([0, 1, 2, 3], DIM, seed=0, round=0)
    zero, large = (aggregation.send(1, torch.full((DIM,), value, dtype=torch.float64)) for value in (0.0, 100.0))
    for message in (zero, large):  # uniform over Z_2^64: a standard deviation of 2^64 / sqrt(12), each bit set in half
        assert message.double().std() == pytest.approx(2**64 / 12**0.5, rel=0.1)
        for bit in (0, 31, 63):
            assert 0.4 < (message >> bit & 1).double().mean() < 0.6
    assert torch.equal(large - zero, to_fixed(torch.full((DIM,), 100.0), 4))  # the masks were the same, and are added
    first = aggregation.send(2, torch.zeros(DIM))
    aggregation.begin([0, 1, 2, 3], DIM, seed=0, round=1)
    assert not torch.equal(first, aggregation.send(2, torch.zeros(DIM)))  # no mask is used in two rounds


def test_a_mask_is_uniform_and_of_its_seed() -> None:
    bits = torch.stack([mask(b"a", 5000) >> bit & 1 for bit in range(64)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 0.04
    assert torch.equal(mask(b"a", 10), mask(b"a", 20)[:10])
    assert not torch.equal(mask(b"a", 10), mask(b"b", 10))


def test_numbers_keep_forty_bits_behind_the_point() -> None:
    x = torch.tensor([1 / 3, -1e-7, 0.0, 1000.125], dtype=torch.float64)
    assert torch.allclose(from_fixed(to_fixed(x, 10)), x, atol=2.0**-41, rtol=0)
    assert from_fixed(to_fixed(x, 10))[3] == 1000.125


@pytest.mark.parametrize("value", [LIMIT / 10, float("nan"), float("inf")])
def test_what_does_not_fit_the_ring_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="but a sum of 10 must stay below"):
        to_fixed(torch.tensor([0.0, value]), 10)


def test_a_threshold_of_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"threshold=0.5 must lie in \(0.5, 1\]"):
        Masked(0.5)
