"""Homomorphic encryption: the server adds ciphertexts that it cannot read (CKKS: Cheon et al. 2017)."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from scaledl.distributed import group
from scaledl.federated.aggregate import Plain, from_fixed, to_fixed

_DEGREE = 8192  # of the ring, for 128 bits of security with coefficients of 160 bits; twice the numbers in a ciphertext
_SCALE_BITS = 40


class Encrypted(Plain):
    """Clients hold a key in common and encrypt their shares under it; the server, which has the public part alone, adds
    them. The sum is right to about 1e-8, and its noise is not of the run's seed, so a repeated run is not bit-equal.

    Needs tenseal, `pip install "scaledl[federated]"`.
    """

    def __init__(self) -> None:
        self._clients: Any = None
        self._server: Any = None

    def begin(self, members: list[int], dim: int, seed: int, round: int) -> None:
        super().begin(members, dim, seed, round)
        tenseal = _tenseal()
        if self._clients is None:
            self._clients = tenseal.context_from(group.agreed(_new_key))
            self._server = tenseal.context_from(self._clients.serialize(save_secret_key=False))
        self._total: list[Any] | None = None

    def send(self, client: int, share: Tensor) -> list[bytes]:  # type: ignore[override]
        tenseal = _tenseal()
        numbers = from_fixed(to_fixed(share, len(self.members)))
        return [tenseal.ckks_vector(self._clients, part.tolist()).serialize() for part in numbers.split(_DEGREE // 2)]

    def receive(self, message: list[bytes]) -> None:  # type: ignore[override]
        tenseal = _tenseal()
        parts = [tenseal.ckks_vector_from(self._server, part) for part in message]
        self._total = parts if self._total is None else [a + b for a, b in zip(self._total, parts, strict=True)]

    def seen(self, message: list[bytes]) -> Tensor:  # type: ignore[override]
        end = b"".join(message)[-8 * self.dim :]  # the beginning of a ciphertext says what it is
        return from_fixed(torch.from_numpy(np.frombuffer(end, np.int64).copy()))

    def size_of(self, message: list[bytes]) -> int:  # type: ignore[override]
        return sum(map(len, message))

    def finish(self, arrived: list[int]) -> Tensor | None:
        if not arrived:
            return torch.zeros(self.dim, dtype=torch.float64)
        mine = [part.serialize() for part in self._total] if self._total else None
        by_rank: list[list[bytes] | None] = [mine]
        if dist.is_initialized():
            by_rank = [None] * dist.get_world_size()
            dist.all_gather_object(by_rank, mine)
        first, *others = [sums for sums in by_rank if sums]
        tenseal, numbers = _tenseal(), []
        for index, part in enumerate(first):
            total = tenseal.ckks_vector_from(self._server, part)
            for sums in others:
                total += tenseal.ckks_vector_from(self._server, sums[index])
            numbers += tenseal.ckks_vector_from(self._clients, total.serialize()).decrypt()
        return torch.tensor(numbers, dtype=torch.float64)


def _new_key() -> bytes:
    tenseal = _tenseal()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=_DEGREE, coeff_mod_bit_sizes=[60, _SCALE_BITS, 60]
    )
    context.global_scale = 2**_SCALE_BITS
    return context.serialize(save_secret_key=True)


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise ImportError(
            'federation/aggregation=encrypted needs the package tenseal: pip install "scaledl[federated]", or take '
            "federation/aggregation=masked"
        ) from error
    return tenseal
