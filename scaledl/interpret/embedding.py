"""A model of tokens as a function of their embeddings, which have gradients where tokens have none."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def of_embeddings(model: nn.Module, input_ids: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """What stands for tokens input_ids (1, T): their embeddings (1, T, D); the mean of all tokens' embeddings in each
    one's place; and the model's output for any embeddings (n, T, D) there.

    Positions, and what a model makes of the tokens themselves (a mask of padding), stay.

    Raises:
        ValueError: if the model has no nn.Embedding that reads the tokens.
    """
    read: list[tuple[nn.Embedding, Tensor]] = []

    def see(layer: nn.Embedding, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if torch.equal(arguments[0], input_ids):
            read.append((layer, output))

    handles = [module.register_forward_hook(see) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        with torch.no_grad():
            model(input_ids)
    finally:
        for handle in handles:
            handle.remove()
    if not read:
        raise ValueError(
            f"{type(model).__name__} has no nn.Embedding that reads its tokens one by one, so that nothing can be "
            "followed back to them; explain a model that has one (GPT, BERT, recurrent, TextCNN)"
        )
    layer, embedded = read[0]

    def instead(embeddings: Tensor) -> Tensor:
        def put(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            return embeddings

        handle = layer.register_forward_hook(put)
        try:
            return model(input_ids.expand(len(embeddings), -1))
        finally:
            handle.remove()

    return embedded, layer.weight.detach().mean(0).expand_as(embedded), instead
