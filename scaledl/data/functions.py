"""Samples of known functions, to see how near a model comes."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scaledl.data.base import BatchDataset, Data
from scaledl.data.samples import Samples

Formula = Literal["bessel", "exp_sin", "product", "nested", "mean_sin"]

# in_dim, and x (N, in_dim) -> (N,): the five of Liu et al. 2024, section 3.1.
FORMULAS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "bessel": (1, lambda x: torch.special.bessel_j0(20 * x[:, 0])),
    "exp_sin": (2, lambda x: ((math.pi * x[:, 0]).sin() + x[:, 1] ** 2).exp()),
    "product": (2, lambda x: x[:, 0] * x[:, 1]),
    "nested": (4, lambda x: (((math.pi * (x**2).view(-1, 2, 2).sum(2)).sin().sum(1)) / 2).exp()),
    "mean_sin": (100, lambda x: (math.pi * x / 2).sin().square().mean(1).exp()),
}


class Functions(Data):
    """Points x (B, in_dim) drawn evenly from [-1, 1]^in_dim, and y = f(x) (B,), in the function's own units.

    Args:
        formula: `bessel` J₀(20 x), `exp_sin` exp(sin πx₀ + x₁²), `product` x₀ x₁,
            `nested` exp((sin π(x₀² + x₁²) + sin π(x₂² + x₃²)) / 2),
            `mean_sin` exp of the mean of sin²(πxᵢ/2) over 100 xᵢ.
        num_train, num_val, num_test: points; the three sets are drawn apart.
        noise: standard deviation of what is added to y for training; validation and test have none.
        in_dim, out_dim: null = found out.
    """

    def __init__(
        self,
        formula: Formula,
        global_batch_size: int,
        micro_batch_size: int,
        num_train: int = 1000,
        num_val: int = 1000,
        num_test: int = 1000,
        noise: float = 0.0,
        in_dim: int | None = None,
        out_dim: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ):
        super().__init__(global_batch_size, micro_batch_size, seed, num_workers)
        self.formula, self.noise = formula, noise
        self.sizes = {"train": num_train, "val": num_val, "test": num_test}
        if num_train < 1 or min(num_val, num_test) < 0 or noise < 0:
            raise ValueError(
                f"data.num_train={num_train} must be at least 1, num_val={num_val}, num_test={num_test} and "
                f"noise={noise} at least 0"
            )
        for name, given in {"in_dim": in_dim, "out_dim": out_dim}.items():
            if given not in (None, self.facts()[name]):
                raise ValueError(f"data.{name}={given}, but {formula} has {name}={self.facts()[name]}; set it to null")

    def facts(self) -> dict[str, int]:
        return {"in_dim": FORMULAS[self.formula][0], "out_dim": 1}

    def describe(self) -> str:
        return f"{self.formula}, a function of {FORMULAS[self.formula][0]} variables"

    def datasets(self) -> dict[str, BatchDataset]:
        in_dim, function = FORMULAS[self.formula]
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[str, BatchDataset] = {}
        for split, size in self.sizes.items():
            x = 2 * torch.rand(size, in_dim, generator=generator, dtype=torch.float64) - 1
            y = function(x)
            if split == "train":
                y = y + self.noise * torch.randn(size, generator=generator, dtype=torch.float64)
            if size:
                found[split] = Samples(x.float().numpy(), y.float().numpy())
        return found
