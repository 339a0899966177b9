"""Which parameters decay."""

from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices and kernels, none on biases and gains (one axis).

    Parameters that are sharded in different ways are in different groups: fused and foreach optimisers take one group
    at a time, and cannot mix them.
    """
    groups: dict[tuple, dict[str, Any]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) >= 2  # ZeRO 3 leaves an empty tensor behind
            layout = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
            group = groups.setdefault((decays, layout), {"params": []})
            if not decays:
                group["weight_decay"] = 0.0
            group["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: not key[0])]
