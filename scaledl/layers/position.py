"""Positions of tokens: inside attention (rotary), or added to their embeddings (sinusoidal)."""

import math

import torch
from torch import Tensor, nn

ROPE_SCALING_KEYS = frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"})


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al. 2021, RoFormer, eq. 34): q·k depends on the distance of two tokens only.

    Feature i is paired with feature i + head_dim/2, the layout of published Llama and Qwen weights. With `scaling`,
    wavelengths longer than original_max_seq_len / low_freq_factor are stretched by `factor`, those shorter than
    original_max_seq_len / high_freq_factor are kept, those between are interpolated (Llama 3.1).

    The module holds no state: angles come from integer positions in fp32 at every call. A table in a buffer, or one
    passed from block to block, would be rounded to bf16 by `.to(bfloat16)` or by FSDP's cast of a block's inputs.

    Raises:
        ValueError: if head_dim is odd, or `scaling` lacks one of its four keys or has another.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0, scaling: dict[str, float] | None = None) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"head_dim={head_dim} is odd; rotary positions rotate pairs: choose an even head_dim")
        if scaling is not None and set(scaling) != ROPE_SCALING_KEYS:
            raise ValueError(
                f"rope_scaling has the keys {sorted(scaling)}; it needs exactly {sorted(ROPE_SCALING_KEYS)}: "
                "add or remove keys, or set rope_scaling to null"
            )
        self.head_dim = head_dim
        self.base = base
        self.scaling = scaling

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """Radians per position, shape (head_dim/2,), fp32."""
        exponents = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / self.base**exponents
        if self.scaling is None:
            return frequencies
        low, high = self.scaling["low_freq_factor"], self.scaling["high_freq_factor"]
        turns = self.scaling["original_max_seq_len"] * frequencies / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return frequencies * (kept + (1 - kept) / self.scaling["factor"])

    def forward(self, q: Tensor, k: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotates q (..., T, head_dim) and k (..., T, head_dim) by their positions (T,)."""
        angles = positions[:, None] * self.frequencies(positions.device)  # (T, head_dim/2)
        angles = torch.cat((angles, angles), dim=-1)  # (T, head_dim)
        cos, sin = angles.cos(), angles.sin()
        return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).type_as(x)


def sinusoidal(positions: Tensor, dim: int) -> Tensor:
    """Sines and cosines of a position at geometric wavelengths (Vaswani et al. 2017, section 3.5): (T,) -> (T, dim).

    The sines come first, as in the authors' own code and in Marian's weights; the paper's formula alternates, which
    only numbers the features differently. fp32, from integers: no table that would be rounded or run out.
    """
    exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
    angles = positions[:, None] * 10_000.0**-exponents  # (T, dim/2)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
