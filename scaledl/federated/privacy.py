"""Differential privacy of clients: what one of them holds moves the weights by little more than the noise does.

DP-FedAvg (McMahan et al. 2018): clip each update, add Gaussian noise to the sum, count the privacy spent by its Renyi
divergence (Mironov et al. 2019).
"""

import math

import numpy as np
import torch
from torch import Tensor

ORDERS = [*range(2, 65), 80, 96, 128, 192, 256, 512, 1024]


def renyi(order: int, fraction: float, noise_multiplier: float) -> float:
    """Renyi divergence of an order, spent by one round that each client joins with probability `fraction`.

    log(sum_j C(a, j) (1 - q)^(a - j) q^j exp(j (j - 1) / 2 z²)) / (a - 1), exact for whole orders a (Mironov et al.
    2019, section 3.3); a / 2 z² where q = 1.
    """
    if fraction == 0:
        return 0.0
    if fraction == 1:
        return order / (2 * noise_multiplier**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(j + 1)
        - math.lgamma(order - j + 1)
        + (order - j) * math.log1p(-fraction)
        + j * math.log(fraction)
        + j * (j - 1) / (2 * noise_multiplier**2)
        for j in range(order + 1)
    ]
    return float(np.logaddexp.reduce(terms)) / (order - 1)


def epsilon(rounds: int, fraction: float, noise_multiplier: float, delta: float) -> float:
    """The least epsilon of the orders, for which `rounds` rounds are (epsilon, delta)-private.

    The conversion is that of Canonne et al. (2020, proposition 12), below Mironov's log(1 / delta) / (a - 1). One
    client's data are added or taken away.
    """
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    found = (
        rounds * renyi(a, fraction, noise_multiplier) + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in ORDERS
    )
    return max(0.0, min(found))


class ClientPrivacy:
    """Clips each client's update to norm `clip`, weighs all alike, adds N(0, (noise_multiplier clip)²) to the sum.

    Clients join a round independently of each other, with probability `fraction`, as the count of epsilon needs. The
    server adds the noise, so it is trusted (or sees sums only, federation/aggregation=masked); the noise comes from the
    run's seed, which a deployment keeps secret or draws from the operating system. The promise is about the weights:
    `train/*`, `samples_seen` and `clients` in the log come from the clients as they are, for who tries this out.

    Args:
        clip: the norm that no update exceeds.
        noise_multiplier: standard deviation of the noise in units of `clip`.
        delta: the probability with which the promise may fail; below 1 / number of clients.
    """

    def __init__(self, clip: float, noise_multiplier: float, delta: float):
        if clip <= 0 or noise_multiplier < 0 or not 0 < delta < 1:
            raise ValueError(
                f"clip={clip} must be above 0, noise_multiplier={noise_multiplier} at least 0, delta={delta} in (0, 1)"
            )
        self.clip, self.noise_multiplier, self.delta = clip, noise_multiplier, delta

    def clipped(self, update: Tensor) -> tuple[Tensor, bool]:
        """The update (D,), no longer than `clip`, and whether it was."""
        norm = float(torch.linalg.vector_norm(update))
        return update * min(1.0, self.clip / max(norm, 1e-300)), norm > self.clip

    def noise(self, dim: int, seed: int, round: int) -> Tensor:
        """(dim,) float64, to be added to the sum of a round, the same on every rank."""
        rng = np.random.default_rng([seed, 1, round])
        return torch.from_numpy(rng.standard_normal(dim)) * (self.noise_multiplier * self.clip)
