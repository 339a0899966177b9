"""Low-rank adaptation: a trained model learns on by small matrices beside its own, which stay as they are."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.linear import Linear

ADAPTERS = ("lora_a", "lora_b")  # last parts of their names


class LoRALinear(Linear):
    """W x + b + alpha / rank · B A x, of which only A and B learn (Hu et al. 2021, section 4.1).

    B is zero at first, so that the layer begins as W x + b; `weight` and `bias` keep the names they have without it.
    Shapes: lora_a (rank, in_features), lora_b (out_features, rank).

    Args:
        dropout: of what A reads.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool, *, rank: int, alpha: float, dropout: float
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.rank, self.scale, self.enabled = rank, alpha / rank, True
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank))
        self.lora_dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()  # first, and so with the numbers of a layer that is not adapted
        if hasattr(self, "lora_b"):  # nn.Linear's constructor is earlier
            nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
            nn.init.zeros_(self.lora_b)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.enabled:
            return y
        return y + self.scale * F.linear(F.linear(self.lora_dropout(x), self.lora_a), self.lora_b)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[x, A x] and [W, alpha / rank · B], of which the layer without bias is the product, for who computes that."""
        if not self.enabled:
            return x, self.weight
        low = F.linear(self.lora_dropout(x), self.lora_a)
        return torch.cat([x.type_as(low), low], -1), torch.cat([self.weight, self.scale * self.lora_b], -1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, scale={self.scale:g}"


class LoRA:
    """Puts adapters beside a model's linear layers and freezes all else.

    A mixture's experts are stacked matrices and no linear layers: they get none, whatever the targets say.

    Args:
        rank: of the matrix that is added to a weight.
        alpha: over rank, what it is multiplied by; the learning rate need not change with the rank then.
        dropout: of what an adapter reads.
        targets: the last names of the layers that get one, such as q or up, as regular expressions.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: Sequence[str] = ("q", "k", "v", "out", "gate", "up", "down"),
    ) -> None:
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"lora.rank={rank} must be at least 1, lora.alpha={alpha} above 0, lora.dropout={dropout} in [0, 1)"
            )
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, list(targets)

    def __call__(self, model: nn.Module) -> None:
        """Adapt a model in place; its layers' new parameters lie where the old ones do.

        Raises:
            ValueError: it has no such layer.
        """
        wanted = re.compile("|".join(f"(?:{target})" for target in self.targets))
        linear = {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, Linear)}
        chosen = {name: module for name, module in linear.items() if wanted.fullmatch(name.rpartition(".")[2])}
        if not chosen:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"lora.targets={self.targets} names no linear layer of {type(model).__name__}; it has "
                f"{', '.join(known) or 'none'}"
            )
        for name, layer in chosen.items():
            parent, _, last = name.rpartition(".")
            with torch.device(layer.weight.device):
                adapted = LoRALinear(
                    layer.in_features,
                    layer.out_features,
                    layer.bias is not None,
                    rank=self.rank,
                    alpha=self.alpha,
                    dropout=self.dropout,
                )
            adapted.weight, adapted.bias = layer.weight, layer.bias
            setattr(model.get_submodule(parent), last, adapted)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] in ADAPTERS)


def is_adapted(model: nn.Module) -> bool:
    return any(isinstance(module, LoRALinear) for module in model.modules())


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """With the model as it was before it was adapted."""
    adapted = [module for module in model.modules() if isinstance(module, LoRALinear)]
    for module in adapted:
        module.enabled = False
    try:
        yield
    finally:
        for module in adapted:
            module.enabled = True


def merged(weights: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The weights, by name, of the model without adapters that computes the same: W + scale · B A."""
    found = {name: weight for name, weight in weights.items() if name.rpartition(".")[2] not in ADAPTERS}
    for name in weights:
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            weight, a, b = (weights[f"{layer}.{part}"] for part in ("weight", *ADAPTERS))
            found[f"{layer}.weight"] = (weight.float() + scale * b.float() @ a.float()).type_as(weight)
    return found
