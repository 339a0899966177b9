"""Where attention layers look."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def attention_layers(model: nn.Module, at_most: int) -> dict[str, nn.Module]:
    """Layers with a method `attention_map`, by name, spread evenly from the first to the last.

    It takes what `forward` takes and returns how much each place is attended to, (B, H, W), or the weights of tokens on
    tokens, (B, num_heads, T, S).
    """
    found = [(name, module) for name, module in model.named_modules() if hasattr(module, "attention_map")]
    places = np.linspace(0, len(found) - 1, min(at_most, len(found))).round().astype(int)
    return dict(found[place] for place in places)


@contextmanager
def watched(
    layers: dict[str, nn.Module], seen_as: Callable[[Tensor], Tensor] = lambda weights: weights
) -> Iterator[dict[str, list[Tensor]]]:
    """What `attention_map` gives, on the host, for every forward pass of each layer meanwhile.

    Args:
        seen_as: what is made of it before it is kept.
    """
    maps: dict[str, list[Tensor]] = {name: [] for name in layers}

    def recorder(into: list[Tensor]) -> Callable[..., None]:
        def record(layer: Any, arguments: tuple, named: dict[str, Any]) -> None:
            into.append(seen_as(layer.attention_map(*arguments, **named)).float().cpu())

        return record

    handles = [
        layer.register_forward_pre_hook(recorder(maps[name]), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with torch.compiler.set_stance("force_eager"), torch.no_grad():  # compiled blocks do not see new hooks
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def on_places(weights: Tensor) -> Tensor:
    """Attention (B, H, W), or (B, num_heads, T, S) of tokens on tokens, as (B, H, W) over the image.

    Of tokens, it is the mean over the heads: what the first token attends to where it stands before a square of patches
    (a class token), else the mean over all tokens.

    Raises:
        ValueError: if the tokens are no square of patches.
    """
    if weights.ndim == 3:
        return weights
    among = weights.mean(1)  # (B, T, S)
    num_tokens = among.shape[2]
    before = num_tokens - math.isqrt(num_tokens) ** 2
    if before > 1:
        raise ValueError(f"{num_tokens} tokens are no square of patches, with or without a class token before them")
    looked_at = among[:, 0, 1:] if before else among.mean(1)
    return looked_at.unflatten(1, (math.isqrt(num_tokens), -1))
