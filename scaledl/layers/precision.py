"""Inputs in the precision of the weights that read them."""

from torch import Tensor, nn


def like_weights(x: Tensor, module: nn.Module) -> Tensor:
    """x in the precision of the module's weights.

    Noise is drawn in fp32, and bf16-true and DeepSpeed's bf16 have no autocast that would bring the two together.
    """
    return x.to(next(module.parameters()).dtype)
