"""Multilayer perceptron: linear maps with a nonlinearity between."""

import math
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from scaledl.layers.sync_batch_norm import BatchNorm, SyncBatchNorm

Activation = Literal["sigmoid", "tanh", "relu", "gelu", "silu"]
NormName = Literal["none", "batch", "sync_batch", "layer"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
NORMS: dict[str, type[nn.Module]] = {"batch": BatchNorm, "sync_batch": SyncBatchNorm, "layer": nn.LayerNorm}
# By how much weights exceed 1/sqrt(fan_in) so that a signal keeps its size through the nonlinearity f: 1/sqrt(E f(z)²)
# with z ~ N(0, 1), which is He et al.'s (2015) sqrt(2) for relu. sigmoid and tanh as in torch.nn.init.calculate_gain.
GAINS = {"sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "gelu": 1.5335, "silu": 1.6765}


class MLP(nn.Module):
    """Linear -> norm -> activation -> dropout for each of hidden_dims, then a linear map (Rumelhart et al. 1986).

    Takes x (B, ...) and flattens all but the batch axis. norm="batch" takes its statistics from a micro-batch of one
    rank, so that results depend on the number of ranks; "sync_batch" from those of all ranks, "layer" from one sample.

    Raises:
        ValueError: if a width is below 1, or x does not have in_dim values.
    """

    block_types = ()

    def __init__(
        self,
        in_dim: int,
        hidden_dims: list[int],
        out_dim: int,
        activation: Activation = "relu",
        dropout: float = 0.0,
        norm: NormName = "none",
    ) -> None:
        super().__init__()
        widths = [in_dim, *hidden_dims]
        if min(widths) < 1 or out_dim < 1:
            raise ValueError(
                f"in_dim={in_dim}, hidden_dims={list(hidden_dims)}, out_dim={out_dim}: every width must be at least 1; "
                "hidden_dims=[] has no hidden layer"
            )
        self.in_dim, self.num_features, self.gain = in_dim, widths[-1], GAINS[activation]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers.append(nn.Linear(fan_in, fan_out, bias="batch" not in norm))  # batch norm would subtract it again
            if norm != "none":
                layers.append(NORMS[norm](fan_out))
            layers.append(ACTIVATIONS[activation]())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.hidden = nn.Sequential(*layers)
        self.out = nn.Linear(widths[-1], out_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for layer in self.hidden:
            if isinstance(layer, nn.Linear):
                init_layer(layer, self.gain)
        init_layer(self.out, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, out_dim) of x (B, ...) with in_dim values each."""
        return self.out(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last hidden layer (B, num_features)."""
        return self.hidden(flatten(x, self.in_dim))


def flatten(x: Tensor, in_dim: int) -> Tensor:
    """x (B, ...) as (B, in_dim).

    Raises:
        ValueError: if x has another number of values.
    """
    x = x.flatten(1)  # (B, in_dim)
    if x.shape[1] != in_dim:
        raise ValueError(
            f"a sample has {x.shape[1]} values, but the model was built with in_dim={in_dim}: make them equal"
        )
    return x


def init_layer(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """Weights N(0, gain² / fan_in), bias zero."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
