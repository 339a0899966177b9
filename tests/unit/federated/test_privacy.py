"""The privacy spent is that of closed forms, of an integral, and of a published value."""

import math

import numpy as np
import pytest
import torch

from scaledl.federated.privacy import ORDERS, ClientPrivacy, epsilon, renyi


@pytest.mark.parametrize("z", [0.7, 1.0, 5.0])
def test_without_sampling_it_is_the_gaussian_mechanism(z: float) -> None:
    assert [renyi(a, 1.0, z) for a in (2, 7)] == pytest.approx([2 / (2 * z**2), 7 / (2 * z**2)])
    assert renyi(7, 1 - 1e-12, z) == pytest.approx(7 / (2 * z**2), rel=1e-6)  # by the sum over j


@pytest.mark.parametrize(("q", "z", "order"), [(0.1, 1.0, 2), (0.1, 1.0, 5), (0.5, 2.0, 16), (0.01, 0.8, 3)])
def test_with_sampling_it_is_the_divergence_of_the_mixture(q: float, z: float, order: int) -> None:
    x = np.linspace(-30 * z, 30 * z + order, 400_001)
    without = np.exp(-(x**2) / (2 * z**2)) / math.sqrt(2 * math.pi) / z
    ratio = 1 - q + q * np.exp((2 * x - 1) / (2 * z**2))
    divergence = math.log(np.trapezoid(without * ratio**order, x)) / (order - 1)
    assert renyi(order, q, z) == pytest.approx(divergence, rel=1e-6)


def test_order_two_has_a_closed_form() -> None:
    assert renyi(2, 0.3, 1.5) == pytest.approx(math.log(1 + 0.3**2 * (math.exp(1 / 1.5**2) - 1)))


def test_epsilon_against_the_value_of_abadi_et_al() -> None:
    """Deep Learning with Differential Privacy (2016), section 3.2: q 0.01, sigma 4, delta 1e-5, 10,000 steps: 1.26."""
    rounds, q, z, delta = 10_000, 0.01, 4.0, 1e-5
    moments = min(rounds * renyi(a, q, z) + math.log(1 / delta) / (a - 1) for a in ORDERS)
    assert moments == pytest.approx(1.26, abs=0.01)
    assert 0.8 * moments < epsilon(rounds, q, z, delta) < moments


def test_epsilon_of_the_gaussian_mechanism_is_close_to_its_continuous_optimum() -> None:
    rounds, z, delta = 30, 8.0, 1e-4
    rho = rounds / (2 * z**2)
    optimum = rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun & Steinke 2016, proposition 1.3
    assert 0.8 * optimum < epsilon(rounds, 1.0, z, delta) < optimum


def test_epsilon_grows_with_rounds_and_sampling_and_falls_with_noise() -> None:
    base = epsilon(100, 0.1, 2.0, 1e-5)
    assert 0 < epsilon(50, 0.1, 2.0, 1e-5) < base < epsilon(200, 0.1, 2.0, 1e-5)
    assert epsilon(100, 0.05, 2.0, 1e-5) < base < epsilon(100, 1.0, 2.0, 1e-5)
    assert epsilon(100, 0.1, 3.0, 1e-5) < base < epsilon(100, 0.1, 2.0, 1e-6)
    assert epsilon(0, 0.1, 2.0, 1e-5) == 0
    assert epsilon(1, 0.1, 0.0, 1e-5) == math.inf


def test_it_is_that_of_googles_accountant() -> None:
    accounting = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp")
    for q, z, rounds, delta in ((0.1, 1.0, 100, 1e-5), (1.0, 4.0, 30, 1e-3), (0.01, 0.8, 1000, 1e-6)):
        event = accounting.PoissonSampledDpEvent(q, accounting.GaussianDpEvent(z))
        theirs = rdp.RdpAccountant(ORDERS).compose(event, rounds).get_epsilon(delta)
        assert epsilon(rounds, q, z, delta) == pytest.approx(theirs, rel=1e-9)


def test_updates_are_clipped_and_noise_is_of_the_stated_size() -> None:
    privacy = ClientPrivacy(clip=2.0, noise_multiplier=3.0, delta=1e-3)
    long, short = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.3, 0.4]).double()
    assert privacy.clipped(long)[0].tolist() == pytest.approx([1.2, 1.6])
    assert privacy.clipped(long)[1]
    assert torch.equal(privacy.clipped(short)[0], short)
    assert not privacy.clipped(short)[1]
    assert not privacy.clipped(torch.zeros(2))[0].any()
    noise = privacy.noise(100_000, seed=1, round=0)
    assert noise.std() == pytest.approx(6.0, rel=0.02)
    assert torch.equal(noise, privacy.noise(100_000, seed=1, round=0))
    assert not torch.equal(noise, privacy.noise(100_000, seed=1, round=1))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="clip=0 must be above 0"):
        ClientPrivacy(clip=0, noise_multiplier=1.0, delta=1e-3)
