"""A learned function of one variable on every edge instead of a weight: B-splines, their knots, and a layer of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bspline_basis(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """All B-splines at x (Cox 1972, de Boor 1972): x (..., D), knots (K, D) -> (..., K - order - 1, D).

    The order is the degree, as in the KAN paper. No column of `knots` falls; where two are equal, 0/0 counts as 0.
    The features come last, so that memory is read in one piece, and a matrix product takes the result as it lies.
    """
    x = x.unsqueeze(-2)  # (..., 1, D)
    beyond = (x >= knots).to(x.dtype)
    basis = beyond[..., :-1, :] - beyond[..., 1:, :]  # (..., K - 1, D): which interval
    for degree in range(1, order + 1):
        width = (knots[degree:] - knots[:-degree]).clamp(min=1e-12)
        rising = (x - knots[:-degree]) / width * basis
        # The falling part of a neighbour is what is left of it: B' = w B + (1 - w₊) B₊.
        basis = rising[..., :-1, :] - rising[..., 1:, :] + basis[..., 1:, :]
    return basis


def uniform_knots(low: Tensor, high: Tensor, grid_size: int, inside: int, order: int) -> Tensor:
    """Knots (grid_size + 2·order + 1, D) of grid_size intervals and `order` more at each end, low and high (D,).

    `inside` of the intervals lie in [low, high], the others on both sides of it.
    """
    first = (grid_size - inside) // 2 + order
    index = torch.arange(-first, grid_size + 2 * order + 1 - first, device=low.device)
    return low + index[:, None] * ((high - low) / inside)


def knots_of_samples(x: Tensor, knots: Tensor, inside: int, order: int, grid_eps: float) -> Tensor:
    """Knots (K, D) where the samples x (N, D) lie: `inside` intervals over their range, the others beyond it.

    Args:
        knots: those of now (K, D); they stay where a feature has one value only.
        grid_eps: share of even spacing in the knots; the rest follows the quantiles, so that each interval has as many
            samples.
    """
    low, high = x.amin(0), x.amax(0)
    margin = 0.01 * (high - low)
    grid_size = len(knots) - 1 - 2 * order
    new = uniform_knots(low - margin, high + margin, grid_size, inside, order)
    share = torch.linspace(0, 1, inside + 1, dtype=x.dtype, device=x.device)
    first = (grid_size - inside) // 2 + order
    even = new[first : first + inside + 1]
    quantiles = torch.quantile(x, share, dim=0)  # (inside + 1, D)
    quantiles[0], quantiles[-1] = even[0], even[-1]
    new[first : first + inside + 1] = grid_eps * even + (1 - grid_eps) * quantiles
    return torch.where(high > low, new, knots)


def refit(coefficients: Tensor, knots: Tensor, new_knots: Tensor, order: int) -> Tensor:
    """Coefficients (out, n, D) of the same splines on other knots (K, D), by least squares over the new grid's range.

    Exact where the new knots contain the old ones. 2·(order + 1) points in each interval determine every coefficient,
    whether samples lie there or not.
    """
    inner = new_knots[order : len(new_knots) - order]  # (grid_size + 1, D)
    share = (torch.arange(2 * (order + 1), dtype=knots.dtype, device=knots.device) + 0.5) / (2 * (order + 1))
    points = inner[:-1, None] + share[:, None] * (inner[1:, None] - inner[:-1, None])  # (grid_size, points, D)
    points = points.flatten(0, 1)  # (P, D)
    values = torch.einsum("pnd,ond->dpo", bspline_basis(points, knots, order), coefficients)
    basis = bspline_basis(points, new_knots, order).permute(2, 0, 1)  # (D, P, n)
    return torch.linalg.lstsq(basis, values).solution.permute(2, 1, 0)


class KANLayer(nn.Module):
    """y_o = Σ_i w_oi silu(x_i) + spline_oi(x_i) (Liu et al. 2024, eqs. 2.10 to 2.12, their scale inside the splines).

    The knots are a buffer, the same on every rank. Beyond them a spline is zero.

    Args:
        grid_size: intervals between knots, not counting those at the ends that complete the splines.
        spline_order: degree of the polynomials.
        grid_range: where knots lie at the start.
        start_grid_size: how many intervals lie in grid_range at the start, the others beyond it; callbacks.grid_update
            moves them in (grid refinement, without a change of any shape). null = all.

    Raises:
        ValueError: if a size is too small, or the range empty.
    """

    knots: Tensor

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        grid_size: int = 5,
        spline_order: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        start_grid_size: int | None = None,
    ) -> None:
        super().__init__()
        start = grid_size if start_grid_size is None else start_grid_size
        if not 1 <= start <= grid_size or spline_order < 0:
            raise ValueError(
                f"grid_size={grid_size}, start_grid_size={start_grid_size}, spline_order={spline_order}: take "
                "1 <= start_grid_size <= grid_size, and an order of at least 0 (3: cubic)"
            )
        if not grid_range[0] < grid_range[1]:
            raise ValueError(f"grid_range={list(grid_range)} is empty: give [low, high] with low < high")
        self.in_dim, self.grid_size, self.spline_order = in_dim, grid_size, spline_order
        self.grid_range, self.start_grid_size = grid_range, start
        self.base_weight = nn.Parameter(torch.empty(out_dim, in_dim))
        self.spline_weight = nn.Parameter(torch.empty(out_dim, grid_size + spline_order, in_dim))
        self.register_buffer("knots", torch.empty(grid_size + 2 * spline_order + 1, in_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.base_weight, std=1 / math.sqrt(self.in_dim))
        nn.init.normal_(self.spline_weight, std=0.1 / math.sqrt(self.in_dim))
        low, high = torch.tensor(self.grid_range, device=self.knots.device)[:, None].expand(2, self.in_dim)
        self.knots.copy_(uniform_knots(low, high, self.grid_size, self.start_grid_size, self.spline_order))

    def forward(self, x: Tensor) -> Tensor:
        basis = self.basis(x).flatten(-2)  # (..., n·in_dim)
        base = F.linear(F.silu(x), self.base_weight)
        return base + F.linear(basis.to(x.dtype), self.spline_weight.flatten(1))  # (..., out_dim)

    def basis(self, x: Tensor) -> Tensor:
        """(..., n, in_dim), in at least fp32: half precision would lose the place between two knots."""
        x = x if x.dtype == torch.float64 else x.float()
        return bspline_basis(x, self.knots.to(x.dtype), self.spline_order)
