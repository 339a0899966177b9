"""Kolmogorov-Arnold network: sums of learned functions of one variable, layer after layer."""

from itertools import pairwise

from torch import Tensor, nn

from scaledl.layers.kan import KANLayer
from scaledl.models.mlp import flatten


class KAN(nn.Module):
    """An MLP whose edges learn their nonlinearities, and whose nodes only add (Liu et al. 2024, eq. 2.7).

    Takes x (B, ...) and flattens all but the batch axis. The arguments of the grid are KANLayer's; inputs should lie in
    grid_range, and callbacks.grid_update moves the knots to where the values of each layer lie.

    Raises:
        ValueError: if a width is below 1, or x does not have in_dim values.
    """

    block_types = (KANLayer,)

    def __init__(
        self,
        in_dim: int,
        hidden_dims: list[int],
        out_dim: int,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        start_grid_size: int | None = None,
    ) -> None:
        super().__init__()
        widths = [in_dim, *hidden_dims, out_dim]
        if min(widths) < 1:
            raise ValueError(
                f"in_dim={in_dim}, hidden_dims={list(hidden_dims)}, out_dim={out_dim}: every width must be at least 1; "
                "hidden_dims=[] has no hidden layer"
            )
        self.in_dim, self.num_features = in_dim, widths[-2]
        self.layers = nn.ModuleList(
            KANLayer(
                fan_in,
                fan_out,
                grid_size=grid_size,
                spline_order=spline_order,
                grid_range=grid_range,
                start_grid_size=start_grid_size,
            )
            for fan_in, fan_out in pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, out_dim) of x (B, ...) with in_dim values each."""
        return self.layers[-1](self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last hidden layer (B, num_features)."""
        x = flatten(x, self.in_dim)
        for layer in self.layers[:-1]:
            x = layer(x)
        return x
