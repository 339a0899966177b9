"""Muon: the momentum of a matrix, made orthogonal; AdamW for what is no matrix inside the network."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: as steep at 0 as convergence allows


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly U Vᵀ of matrix = U S Vᵀ (rows, columns), in bf16 by a Newton-Schulz iteration of the fifth order."""
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024), AdamW for the rest.

    A parameter group that says `hidden` holds matrices, kernels of convolutions as (out, in · k · k); its step is
    0.2 · sqrt(max(rows, columns)) times the orthogonal matrix, which has the size of AdamW's, so that both share lr and
    weight_decay (Liu et al. 2025, eq. 4). Of a sharded matrix each rank gathers the whole and keeps its own part.

    Args:
        lr: of matrices.
        adamw_lr: of the rest; null = lr.
        momentum: Nesterov's.
        betas: of AdamW.

    Raises:
        ValueError: if lr is negative or the momentum not in [0, 1).
    """

    needs = ("whole_matrices",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        adamw_lr: float | None = None,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        if lr < 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr={lr} must be at least 0, and momentum={momentum} in [0, 1)")
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"hidden": False})
        for group in self.param_groups:
            if not group["hidden"] and adamw_lr is not None:
                group["lr"] = adamw_lr

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                (self._muon if group["hidden"] else self._adam)(parameters, group)
        return loss

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
        for parameter, update in zip(parameters, ahead, strict=True):
            whole = update.full_tensor() if isinstance(update, DTensor) else update
            matrix = whole.flatten(1)
            scale = 0.2 * max(matrix.shape) ** 0.5
            direction = orthogonalize(matrix).reshape(whole.shape)
            if isinstance(update, DTensor):  # every rank has computed the whole: each cuts its own part
                direction = distribute_tensor(direction, update.device_mesh, update.placements, src_data_rank=None)
            parameter.add_(direction, alpha=-group["lr"] * scale)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters]
        beta1, beta2 = group["betas"]
        first = [self.state[p].setdefault("exp_avg", torch.zeros_like(p)) for p in parameters]
        second = [self.state[p].setdefault("exp_avg_sq", torch.zeros_like(p)) for p in parameters]
        steps = [self.state[p].setdefault("step", torch.zeros((), device=p.device)) for p in parameters]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        for parameter, mean, square, step in zip(parameters, first, second, steps, strict=True):
            size = group["lr"] / (1 - beta1**step)
            parameter.sub_(size * mean / ((square / (1 - beta2**step)).sqrt() + group["eps"]))
