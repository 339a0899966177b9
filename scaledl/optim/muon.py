"""Muon: the momentum of a matrix, made orthogonal; AdamW for what is no matrix inside the network."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.owners import Owners

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: as steep at 0 as convergence allows
_AT_ONCE = 2**26  # elements of matrices that are computed together


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Roughly U Vᵀ of each U S Vᵀ in (count, rows, columns), by a Newton-Schulz iteration of the fifth order."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def orthogonalize_all(wholes: list[Tensor], stacked: bool = False) -> list[Tensor]:
    """Each of them, as many of one shape together as memory allows.

    Args:
        stacked: each is many matrices (count, rows, columns); else one, a kernel as (out, in · k · k).
    """
    found = [torch.empty_like(whole, memory_format=torch.contiguous_format) for whole in wholes]
    shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for whole, result in zip(wholes, found, strict=True):
        stack, into = (each if stacked else each.flatten(1)[None] for each in (whole, result))
        count = max(1, _AT_ONCE // stack[0].numel())  # of a large stack, some at a time
        for some in zip(stack.split(count), into.split(count), strict=True):
            shapes.setdefault(some[0].shape, []).append(some)
    for shape, stacks in shapes.items():
        count = max(1, _AT_ONCE // shape.numel())
        for at in range(0, len(stacks), count):
            together, results = zip(*stacks[at : at + count], strict=True)
            directions = orthogonalize(torch.cat(together)).split(shape[0])
            torch._foreach_copy_(results, directions)
    return found


class Muon(Optimizer):
    """Momentum orthogonalised by Newton-Schulz for hidden matrices (Jordan et al. 2024), AdamW for the rest.

    A parameter group that says `hidden` holds matrices, kernels of convolutions as (out, in · k · k), or with `stacked`
    many in each parameter (count, rows, columns); the step is
    0.2 · sqrt(max(rows, columns)) times the orthogonal matrix, which has the size of AdamW's, so that both share lr and
    weight_decay (Liu et al. 2025, eq. 4). Each matrix is made orthogonal on one rank (distributed/owners.py), in bf16
    on a GPU and in fp32 on the host.

    Args:
        lr: of matrices.
        adamw_lr: of the rest; null = lr.
        momentum: Nesterov's.
        betas: of AdamW.

    Raises:
        ValueError: if lr is negative or the momentum not in [0, 1).
    """

    needs = ("hidden_groups",)

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
        super().__init__(params, defaults | {"hidden": False, "stacked": False})
        for group in self.param_groups:
            if not group["hidden"] and adamw_lr is not None:
                group["lr"] = adamw_lr
        self.owners = Owners()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [(g, [p for p in g["params"] if p.grad is not None]) for g in self.param_groups]
        groups = [(group, parameters) for group, parameters in groups if parameters]
        for group, parameters in groups:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            if not group["hidden"]:
                self._adam(parameters, group)
        for stacked in (False, True):
            self._muon([(g, ps) for g, ps in groups if g["hidden"] and g["stacked"] == stacked], stacked)
        return loss

    def _muon(self, groups: list[tuple[dict[str, Any], list[Tensor]]], stacked: bool) -> None:
        """All groups in one exchange, so that owners share the work of all."""
        parameters = [parameter for _, of_group in groups for parameter in of_group]
        if not parameters:
            return
        rates = [group["lr"] for group, of_group in groups for _ in of_group]
        ahead = [update for group, of_group in groups for update in self._ahead(of_group, group["momentum"])]
        compute = partial(orthogonalize_all, stacked=stacked)
        for index, part, size, direction in self.owners(parameters, ahead, compute, stacked):
            rows, *columns = size[1:] if stacked else size
            part.add_(direction, alpha=-rates[index] * 0.2 * max(rows, math.prod(columns)) ** 0.5)

    def _ahead(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """Nesterov's: the momentum as if this step's gradient came once more."""
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, momenta, momentum)

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
