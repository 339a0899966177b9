"""A model's features, through the door where a sharded model gathers its parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def features(model: nn.Module, x: Tensor) -> Tensor:
    """`model.forward_features(x)` by way of `model(x)`: FSDP and ZeRO bring parameters together in hooks of a call."""
    with _answering_with_features(model):
        return model(x)


@contextmanager
def _answering_with_features(model: Any) -> Iterator[None]:
    model.forward = model.forward_features
    try:
        yield
    finally:
        del model.forward  # what its class says counts again
