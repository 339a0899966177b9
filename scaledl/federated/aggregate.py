"""How updates are added up, so that the sum does not depend on which rank trained which client."""

import torch
import torch.distributed as dist
from torch import Tensor

FRACTION_BITS = 40
LIMIT = 2.0 ** (62 - FRACTION_BITS)  # of the absolute value of a sum


def to_fixed(x: Tensor, num_members: int) -> Tensor:
    """x (D,) as int64 multiples of 2^-40, of which num_members can be added without an overflow.

    Integers add alike in every order, which fractions do not, and are what masks need (secure.py).

    Raises:
        ValueError: x is too large, or not finite.
    """
    largest = float(x.abs().max()) if len(x) else 0.0
    if not largest * num_members < LIMIT:
        raise ValueError(
            f"a client's update reaches {largest:g}, but a sum of {num_members} must stay below {LIMIT:g}: lower "
            "optimizer.lr, or set trainer.gradient_clip_val"
        )
    return (x.double() * 2.0**FRACTION_BITS).round().to(torch.int64)


def from_fixed(x: Tensor) -> Tensor:
    return x.double() / 2.0**FRACTION_BITS


class Plain:
    """The server adds what it receives, and can read each client's part of it (McMahan et al. 2017, algorithm 1).

    Each round: `begin`, then `send` and `receive` for the clients of this rank, then `finish` by all ranks together.
    """

    def begin(self, members: list[int], dim: int, seed: int, round: int) -> None:
        """A sum of vectors (dim,) from `members`, some of whom may drop out."""
        self.members, self.dim, self.seed, self.round = members, dim, seed, round
        self._sum = torch.zeros(dim, dtype=torch.int64)

    def send(self, client: int, share: Tensor) -> Tensor:
        """What the server receives of a client's share (dim,) of the sum."""
        return to_fixed(share, len(self.members))

    def receive(self, message: Tensor) -> None:
        self._sum += message

    def seen(self, message: Tensor) -> Tensor:
        """The numbers (dim,) that a curious server reads in a message."""
        return from_fixed(message)

    def size_of(self, message: Tensor) -> int:
        """Bytes of a message."""
        return message.numel() * message.element_size()

    def finish(self, arrived: list[int]) -> Tensor | None:
        """The sum (dim,) of the shares that have arrived, in float64; None if the rest cannot be taken out."""
        return from_fixed(self._over_ranks())

    def _over_ranks(self) -> Tensor:
        if dist.is_initialized():
            dist.all_reduce(self._sum)
        return self._sum
