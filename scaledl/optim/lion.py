"""Lion: steps of one size, in the direction of a sign."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """w ← w - lr · (sign(β₁ m + (1 - β₁) g) + weight_decay · w), m ← β₂ m + (1 - β₂) g (Chen et al. 2023, algorithm 2).

    One state a parameter, half of Adam's. As every weight moves by lr, a good lr is 3 to 10 times smaller than Adam's
    and a good weight_decay as much larger.

    Raises:
        ValueError: if lr is negative or a beta is not in [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        if lr < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr={lr} must be at least 0, and each of betas={tuple(betas)} in [0, 1)")
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            gradients = [parameter.grad for parameter in parameters]
            momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
            beta1, beta2 = group["betas"]
            directions = torch._foreach_sign(torch._foreach_lerp(momenta, gradients, 1 - beta1))
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)
        return loss
