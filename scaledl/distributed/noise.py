"""Random numbers of samples: a function of (seed, position in the training stream, name of the draw), of nothing else.

So a run draws the same numbers whatever its ranks, the size of its micro-batches, or the step it resumed from.

A draw is a hash of a counter: word c of a sample is `mix(key + mix(c))`, where the key is the hash of (seed, position,
name) and mix is the finaliser of splitmix64 (Steele et al. 2014). mix is a bijection of 64 bits, so no two words of
one draw are equal. int64 products wrap alike on every device: only the last bits of a normal depend on it.
"""

import math
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1


def _signed(value: int) -> int:
    """`value` modulo 2^64 as int64 holds it."""
    return (value + 2**63) % 2**64 - 2**63


_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def _fold(x: Tensor, shift: int) -> Tensor:
    logical = (x >> shift).bitwise_and_((1 << 64 - shift) - 1)
    return x.bitwise_xor_(logical)


def _mix(x: Tensor) -> Tensor:
    """Hashes x (int64) in place: out of place, a large draw takes twice the time."""
    for shift, factor in _ROUNDS:
        _fold(x, shift).mul_(factor)
    return _fold(x, 31)


@torch.compiler.assume_constant_result
def _name_key(name: str) -> int:
    return zlib.crc32(name.encode())


def _computed_in(dtype: torch.dtype) -> torch.dtype:
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} holds no fractions; draw a floating-point dtype, or call integers()")
    return torch.float64 if dtype == torch.float64 else torch.float32


class Noise:
    """Random numbers for each sample of a batch.

    A draw is known by its name: asked twice for one name, it gives the same numbers, and draws of different kinds with
    one name depend on each other. So each use of noise takes a name of its own ("eps", "t", "mask"). How the numbers of
    two shapes under one name relate is not specified.

    Args:
        seed: any integer, taken modulo 2^64.
        positions: (B,) int64, where in the training stream each sample stands; draws come out on their device.

    Raises:
        ValueError: if positions are not a vector of int64.
    """

    def __init__(self, seed: int, positions: Tensor) -> None:
        if positions.dtype != torch.int64 or positions.dim() != 1:
            raise ValueError(
                f"positions are {positions.dtype} of shape {tuple(positions.shape)}; noise is keyed by one int64 for "
                "each sample: pass a tensor of shape (B,) and dtype torch.int64"
            )
        self._keys = _mix(_mix(positions.clone()) + _signed((seed + 1) * _GOLDEN))

    def uniform(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) in [0, 1): multiples of 2^-53 in float64, else of 2^-24, rounded to `dtype` but never to 1."""
        wide = _computed_in(dtype)
        bits = self._bits(name, math.prod(shape), wide)
        spare, digits = (11, 53) if wide == torch.float64 else (8, 24)
        uniform = (bits >> spare).to(wide).mul_(2.0**-digits).add_(0.5)
        if dtype != wide:
            uniform = uniform.clamp_(max=1 - torch.finfo(dtype).eps / 2).to(dtype)
        return uniform.reshape(len(self._keys), *shape)

    def normal(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) from N(0, 1) (Box & Muller 1958); none is beyond 6.7, or 9.5 in float64."""
        wide = _computed_in(dtype)
        count = math.prod(shape)
        first, second = self._bits(name, count + count % 2, wide).chunk(2, dim=1)
        largest = _INT64_MAX if wide == torch.float64 else _INT32_MAX
        radius = (first & largest).to(wide).add_(0.5).mul_(1 / (largest + 1)).log_().mul_(-2).sqrt_()
        angle = second.to(wide).mul_(math.pi / (largest + 1))
        normal = torch.cat((radius * angle.cos(), radius * angle.sin()), dim=1)[:, :count]
        return normal.to(dtype).reshape(len(self._keys), *shape)

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [0, high), each as likely as the others to one part in 2^64 / high."""
        if not 0 < high <= _INT64_MAX:
            raise ValueError(f"high={high}; integers are drawn from [0, high): choose high between 1 and 2^63 - 1")
        return self._words(name, math.prod(shape)).remainder_(high).reshape(len(self._keys), *shape)

    def bernoulli(self, name: str, p: float, *shape: int) -> Tensor:
        """(B, *shape) bool, true with probability p (to 2^-24)."""
        if not 0 <= p <= 1:
            raise ValueError(f"p={p} is no probability; choose p between 0 and 1")
        return self.uniform(name, *shape) < p

    def permutation(self, name: str, length: int) -> Tensor:
        """(B, length) int64, each row a random order of 0 .. length - 1."""
        return self._words(name, length).argsort(dim=1)

    def _words(self, name: str, count: int) -> Tensor:
        """(B, count) hashed int64, distinct within a row."""
        counters = _mix(torch.arange(count, device=self._keys.device))
        keys = _mix(self._keys + _name_key(name))
        return _mix(keys[:, None] + counters)

    def _bits(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """(B, count) integers of as many bits as `dtype`."""
        if dtype == torch.float64:
            return self._words(name, count)
        words = self._words(name, -(-count // 2))
        return words.flatten().view(torch.int32).view(len(words), 2 * words.shape[1])[:, :count]
