"""In which precision a layer computes, where that is not left to autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def like_weights(x: Tensor, module: nn.Module) -> Tensor:
    """x in the precision of the module's weights.

    Noise is drawn in fp32, and bf16-true and DeepSpeed's bf16 have no autocast that would bring the two together.
    """
    return x.to(next(module.parameters()).dtype)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Where x is, operations keep the precision of what they are given."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def product_dtype(x: Tensor) -> torch.dtype:
    """In which products with x are computed: autocast's where that is on."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
