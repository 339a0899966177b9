"""The position-wise half of a transformer block."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.linear import Linear

Activation = Literal["gelu", "gelu_tanh", "relu", "silu", "swiglu"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": F.silu,
}


class FeedForward(nn.Module):
    """Two-layer perceptron (Vaswani et al. 2017, eq. 2), or its gated form SwiGLU (Shazeer 2020, eq. 6).

    hidden_dim defaults to 4·dim; SwiGLU has a third matrix, so equal size means 8/3·dim there. N(0, init_std) fills
    the way up, N(0, out_init_std) the way down into the residual stream (default: init_std).
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        *,
        activation: Activation = "gelu",
        bias: bool = True,
        dropout: float = 0.0,
        init_std: float = 0.02,
        out_init_std: float | None = None,
    ) -> None:
        super().__init__()
        hidden_dim = 4 * dim if hidden_dim is None else hidden_dim
        self.activation = FUNCTIONS[activation]
        self.init_std = init_std
        self.out_init_std = init_std if out_init_std is None else out_init_std
        # gate and up stay apart: one fused matmul was not faster (CPU, dim 128), and apart they shard by rows.
        self.gate = Linear(dim, hidden_dim, bias=bias) if activation == "swiglu" else None
        self.up = Linear(dim, hidden_dim, bias=bias)
        self.down = Linear(hidden_dim, dim, bias=bias)
        self.out_dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for linear, std in ((self.gate, self.init_std), (self.up, self.init_std), (self.down, self.out_init_std)):
            if linear is not None:
                nn.init.normal_(linear.weight, std=std)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)  # (..., hidden_dim)
        hidden = self.activation(hidden) if self.gate is None else self.activation(self.gate(x)) * hidden
        return self.out_dropout(self.down(hidden))  # (..., dim)

    def tensor_parallel_plan(self, size: int) -> dict[str, str]:
        """Each of `size` ranks computes a slice of the hidden layer.

        Raises:
            ValueError: if `size` does not divide it.
        """
        if self.up.out_features % size:
            raise ValueError(
                f"{size} tensor-parallel ranks cannot share hidden_dim={self.up.out_features}: choose a divisor"
            )
        gate = {} if self.gate is None else {"gate": "colwise"}
        return {"up": "colwise", **gate, "down": "rowwise"}
