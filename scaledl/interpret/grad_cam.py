"""Grad-CAM: where a class shows in the last feature maps (Selvaraju et al. 2017, arXiv:1610.02391)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from scaledl.interpret.subject import Score

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@contextmanager
def maps_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The layer's output in every forward pass meanwhile."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        maps.append(output)
        return output.clone()  # so that an operation in place behind the layer does not change what was kept

    handle = layer.register_forward_hook(keep)
    try:
        yield maps
    finally:
        handle.remove()


def grad_cam(score: Score, layer: nn.Module, x: Tensor) -> Tensor:
    """(n, h, w): the layer's maps, weighted by the mean of their gradients, where they are positive (eq. 1 and 2)."""
    with torch.enable_grad(), maps_of(layer) as maps:
        value = score(x.detach().requires_grad_()).sum()
    (slope,) = torch.autograd.grad(value, maps[0])
    weights = slope.mean((2, 3), keepdim=True)  # (n, C, 1, 1)
    return (weights * maps[0]).sum(1).relu().detach()


def last_maps(model: nn.Module, x: Tensor) -> str | None:
    """The name of the module that gives the last feature maps (n, C, h, w) for images x, if there are any.

    These are maps before they are pooled for the head. What only cuts an image into patches, as a vision transformer
    does, makes no maps.
    """
    found: list[str] = []
    skipped: list[Tensor] = []  # kept, so that an id is not given twice

    def look(name: str, module: nn.Module) -> RemovableHandle:
        cuts = isinstance(module, nn.Conv2d) and module.stride == module.kernel_size != (1, 1)

        def see(module: nn.Module, arguments: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim != 4 or output.shape[2:].numel() == 1:
                return
            if cuts or isinstance(module, POOLS) or any(output is other for other in skipped):
                skipped.append(output)
            elif not any(output is given for given in arguments):
                found.append(name)

        return module.register_forward_hook(see)

    handles = [look(name, module) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None
