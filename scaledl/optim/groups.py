"""Which parameters decay, and which are the matrices inside the network."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from scaledl.distributed.parallelize import stacks_of

# What our models call their last layer, and what stands for ids, positions or a class.
OUTER = re.compile(r"^(out|head)\.|embedding|(class|mask)_token")


def parameter_groups(model: nn.Module, by_use: bool = False) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices and kernels, none on biases and gains (one axis).

    Parameters that are sharded in different ways are in different groups: fused and foreach optimisers take one group
    at a time, and cannot mix them.

    Args:
        by_use: also part the `hidden` matrices from embeddings and the output layer, as Muon asks, and among them those
            `stacked` over axis 0, which a module says of its own parameters (layers/moe.py).
    """
    groups: dict[tuple, dict[str, Any]] = {}
    stacks = stacks_of(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2  # ZeRO 3 leaves an empty tensor behind
            layout = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
            hidden = by_use and decays and not OUTER.search(name)
            stacked = hidden and parameter in stacks
            group = groups.setdefault((decays, hidden, stacked, layout), {"params": []})
            if not decays:
                group["weight_decay"] = 0.0
            if hidden:
                group |= {"hidden": True, "stacked": stacked}
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: not key[0])]


def groups_of(make_optimizer: Callable, model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups of a model as the optimiser that is made wants them."""
    return parameter_groups(model, by_use="hidden_groups" in needs_of(make_optimizer))


def needs_of(make_optimizer: Callable) -> tuple[str, ...]:
    """What the optimiser that is made needs of a strategy (see `RunState.cannot`); `hidden_groups` it gets by use."""
    made = getattr(make_optimizer, "func", make_optimizer)
    return ("whole_matrices",) if made is torch.optim.Adafactor else getattr(made, "needs", ())
