"""The norm of gradients that may be sharded, and what follows from it: clipping, and leaving out a bad step."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def global_norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm over all gradients and, where they are sharded, over all ranks: a float32 scalar."""
    layouts: dict[tuple, list[Tensor]] = {}
    for gradient in gradients:
        sharded = isinstance(gradient, DTensor)
        layout = (gradient.device_mesh, tuple(gradient.placements)) if sharded else (None, ())  # type: ignore[attr-defined]
        layouts.setdefault(layout, []).append(local(gradient))
    norms = {
        layout: torch.linalg.vector_norm(torch.stack(torch._foreach_norm(p)).float()) for layout, p in layouts.items()
    }
    if list(norms) == [(None, ())]:
        return norms[None, ()]
    total = torch.zeros((), device=local(gradients[0]).device)
    for (mesh, placements), norm in norms.items():
        square = norm.square()
        for axis, placement in enumerate(placements):
            if not placement.is_replicate():  # there are shards of several classes
                dist.all_reduce(square, group=mesh.get_group(axis))
        total += square
    return total.sqrt()


def clip(gradients: list[Tensor], norm: Tensor, max_norm: float) -> None:
    """Scale gradients of this norm down to max_norm, in place (Pascanu et al. 2013)."""
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if scale.device.type == "cpu" and scale == 1:  # a device would have to be waited for
        return
    torch._foreach_mul_([local(gradient) for gradient in gradients], scale)


def skip_if(bad: Tensor, optimizer: Optimizer, parameters: list[Tensor]) -> None:
    """Let the optimiser's next step change nothing where `bad` (a bool scalar) is true.

    Fused optimisers read the flag on the device. For the others it comes to the host, and parameters without a gradient
    are left alone by all of them.
    """
    # Fused SGD takes its momentum from memory that nothing has written when its very first step is skipped.
    first_momentum = optimizer.defaults.get("momentum") and not optimizer.state
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not first_momentum:
        optimizer.found_inf, optimizer.grad_scale = bad.float(), None  # type: ignore[attr-defined]
    elif bad.item():
        for parameter in parameters:
            parameter.grad = None
