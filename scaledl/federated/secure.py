"""Secure aggregation: the server learns the sum of the updates and nothing else (Bonawitz et al. 2017, figure 4)."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from scaledl.federated.aggregate import Plain, from_fixed

_P = 2**255 - 19  # of X25519
_FIELD = 2**521 - 1  # a prime above every secret that is shared
BASE = (9).to_bytes(32, "little")


def x25519(secret: bytes, point: bytes = BASE) -> bytes:
    """The point times the secret on Curve25519: Diffie and Hellman's agreement (RFC 7748, section 5)."""
    k = bytearray(secret)
    k[0], k[31] = k[0] & 248, k[31] & 127 | 64
    scalar = int.from_bytes(k, "little")
    u = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3, swapped = 1, 0, u, 1, 0
    for bit in range(254, -1, -1):
        now = scalar >> bit & 1
        if now != swapped:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swapped = now
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _P, b * b % _P, d * a % _P, c * b % _P
        x3, z3 = (da + cb) ** 2 % _P, u * (da - cb) ** 2 % _P
        x2, z2 = aa * bb % _P, (aa - bb) * (aa + 121665 * (aa - bb)) % _P
    if swapped:
        x2, z2 = x3, z3
    return (x2 * pow(z2, -1, _P) % _P).to_bytes(32, "little")


def split(secret: int, threshold: int, points: list[int], coefficients: bytes) -> dict[int, int]:
    """Shares by point (from 1 up): values of a polynomial over a prime field whose value at 0 is the secret, of which
    any `threshold` determine it and fewer say nothing (Shamir 1979).

    Args:
        coefficients: a seed of the polynomial.
    """
    wide = hashlib.shake_256(coefficients).digest(80 * (threshold - 1))
    terms = [int.from_bytes(wide[i : i + 80], "little") % _FIELD for i in range(0, len(wide), 80)]
    shares = {}
    for point in points:
        value = 0
        for term in reversed([secret, *terms]):
            value = (value * point + term) % _FIELD
        shares[point] = value
    return shares


def recover(shares: dict[int, int]) -> int:
    """The secret of at least `threshold` shares: Lagrange's polynomial at 0."""
    secret = 0
    for point, value in shares.items():
        above = below = 1
        for other in shares:
            if other != point:
                above, below = above * other % _FIELD, below * (other - point) % _FIELD
        secret += value * above * pow(below, -1, _FIELD)
    return secret % _FIELD


def mask(seed: bytes, dim: int) -> Tensor:
    """(dim,) int64, uniform over Z_2^64: SHAKE128 as the pseudorandom generator."""
    return torch.from_numpy(np.frombuffer(hashlib.shake_128(seed).digest(8 * dim), np.int64).copy())


class Masked(Plain):
    """Each client adds masks to its fixed-point share in Z_2^64, under which it looks uniformly random. Those that it
    agreed on with each other client cancel in the sum; its own is taken off by the others' help.

    Client u sends share + mask(b_u) + sum_{v > u} mask(s_uv) - sum_{v < u} mask(s_uv). b_u and u's key for the s_uv
    are shared out among all clients. Once the server knows who has arrived, the others give it their shares of b_u for
    each u that has, and of the key for each that has not: never both, so that no single share of the sum is bared.

    It is shown here with all parties in one program, so secrets come from the run's seed; a deployment draws them from
    the operating system, encrypts the shares on their way, and signs keys against a server that lies. Keys take
    1 ms for each pair of clients.

    Args:
        threshold: the share of a round's clients that must arrive; fewer than so many learn nothing together.
    """

    def __init__(self, threshold: float = 0.6):
        if not 0.5 < threshold <= 1:
            raise ValueError(
                f"threshold={threshold} must lie in (0.5, 1]: a server that tells two halves different stories about "
                "who arrived could otherwise bare a client's share"
            )
        self.threshold = threshold

    def begin(self, members: list[int], dim: int, seed: int, round: int) -> None:
        super().begin(members, dim, seed, round)
        self._at_least = max(2, int(np.ceil(self.threshold * len(members))))
        self._keys = {u: self._secret(u, "key") for u in members}
        self._public = {u: x25519(key) for u, key in self._keys.items()}
        self._pairs: dict[tuple[int, int], bytes] = {}
        points = [u + 1 for u in members]
        self._shares = {  # of each client's two secrets, by the point of the client that keeps them
            (u, name): split(
                int.from_bytes(self._secret(u, name), "little"), self._at_least, points, self._secret(u, f"{name}/poly")
            )
            for u in members
            for name in ("key", "own")
        }

    def send(self, client: int, share: Tensor) -> Tensor:
        message = super().send(client, share) + mask(self._secret(client, "own"), self.dim)
        return message + self._pairwise(client, self._keys[client], self.members)

    def finish(self, arrived: list[int]) -> Tensor | None:
        total = self._over_ranks()
        if len(arrived) < self._at_least:
            return None
        helpers = [u + 1 for u in arrived][: self._at_least]
        for u in arrived:
            total -= mask(self._recovered(u, "own", helpers), self.dim)
        for u in set(self.members) - set(arrived):  # what those that arrived have added for one that did not
            total += self._pairwise(u, self._recovered(u, "key", helpers), arrived)
        return from_fixed(total)

    def _pairwise(self, u: int, key: bytes, others: list[int]) -> Tensor:
        total = torch.zeros(self.dim, dtype=torch.int64)
        for v in others:
            if v != u:
                pair = min(u, v), max(u, v)
                if pair not in self._pairs:
                    self._pairs[pair] = x25519(key, self._public[v])
                agreed = mask(self._pairs[pair], self.dim)
                total += agreed if u < v else -agreed
        return total

    def _recovered(self, u: int, name: str, helpers: list[int]) -> bytes:
        return recover({point: self._shares[u, name][point] for point in helpers}).to_bytes(32, "little")

    def _secret(self, u: int, name: str) -> bytes:
        return hashlib.shake_256(f"{self.seed}/{self.round}/{u}/{name}".encode()).digest(32)
