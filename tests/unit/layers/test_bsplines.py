import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from scaledl.layers.kan import KANLayer, bspline_basis, knots_of_samples, refit, uniform_knots


def uneven_knots(order: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(K, 2): two features, each with knots of its own."""
    steps = torch.rand(6 + 2 * order, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) + 0.1
    return steps.cumsum(0)


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_basis_is_scipys(order: int, dtype: torch.dtype, tolerance: float) -> None:
    knots = uneven_knots(order, dtype)
    low, high = knots[order], knots[-order - 1]
    x = low + (high - low) * torch.rand(200, 2, generator=torch.Generator().manual_seed(1), dtype=dtype)
    basis = bspline_basis(x, knots, order)  # (200, n, 2)
    for feature in range(2):
        args = (x[:, feature].double().numpy(), knots[:, feature].double().numpy(), order)
        expected = BSpline.design_matrix(*args).toarray()
        np.testing.assert_allclose(basis[..., feature].double().numpy(), expected, rtol=0, atol=tolerance)


def test_the_derivative_is_scipys() -> None:
    knots = uneven_knots(3)
    x = (knots[3] + 0.9 * (knots[-4] - knots[3]) * torch.rand(50, 2, dtype=torch.float64)).requires_grad_()
    coefficients = torch.randn(len(knots) - 4, 2, dtype=torch.float64)
    (slope,) = torch.autograd.grad((bspline_basis(x, knots, 3) * coefficients).sum(), x)
    for feature in range(2):
        spline = BSpline(knots[:, feature].numpy(), coefficients[:, feature].numpy(), 3)
        np.testing.assert_allclose(slope[:, feature], spline.derivative()(x[:, feature].detach().numpy()), atol=1e-9)


def test_beyond_the_knots_is_zero_and_between_the_inner_ones_the_splines_add_up_to_one() -> None:
    knots = uneven_knots(3)
    inside = knots[3] + (knots[-4] - knots[3]) * torch.rand(50, 2, dtype=torch.float64)
    torch.testing.assert_close(bspline_basis(inside, knots, 3).sum(1), torch.ones(50, 2, dtype=torch.float64))
    outside = torch.stack([knots[0] - 0.1, knots[-1] + 0.1, knots[-1] + 1e6])
    assert not bspline_basis(outside, knots, 3).any()


def test_knots_that_fall_together_give_finite_values_and_gradients() -> None:
    knots = torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0, 5.0])[:, None]
    x = torch.linspace(-1, 6, 50)[:, None].requires_grad_()
    basis = bspline_basis(x, knots, 3)
    basis.square().sum().backward()
    assert basis.isfinite().all()
    assert x.grad.isfinite().all()
    for index in range(4):
        one = BSpline.basis_element(knots[index : index + 5, 0].double().numpy(), extrapolate=False)
        expected = np.nan_to_num(one(x[:, 0].detach().double().numpy()))
        np.testing.assert_allclose(basis[:, index, 0].detach(), expected, atol=1e-6)


def test_even_knots_have_so_many_intervals_inside_and_the_rest_around() -> None:
    knots = uniform_knots(torch.tensor([-1.0]), torch.tensor([1.0]), grid_size=7, inside=4, order=2)[:, 0]
    assert len(knots) == 7 + 2 * 2 + 1
    torch.testing.assert_close(knots.diff(), torch.full((11,), 0.5))
    inner = knots[2:-2]  # 7 intervals: 1 to the left, 4 in [-1, 1], 2 to the right
    torch.testing.assert_close(inner, torch.arange(-1.5, 2.1, 0.5))


def test_knots_of_samples_lie_at_their_quantiles() -> None:
    x = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    x[:, 1] = 0.25  # says nothing about where values lie
    old = uniform_knots(torch.full((2,), -1.0), torch.full((2,), 1.0), 8, 8, 3).double()
    by_quantile = knots_of_samples(x, old, inside=8, order=3, grid_eps=0.01)
    inner = by_quantile[3:-3, 0]
    shares = torch.histogram(x[:, 0], inner)[0] / len(x)
    torch.testing.assert_close(shares, torch.full((8,), 1 / 8, dtype=torch.float64), atol=0.03, rtol=0)
    assert inner[0] < x[:, 0].min() < x[:, 0].max() < inner[-1]
    even = knots_of_samples(x, old, inside=8, order=3, grid_eps=1.0)
    torch.testing.assert_close(even[:, 0].diff(), even[:, 0].diff().mean().expand(14))
    assert torch.equal(by_quantile[:, 1], old[:, 1])
    assert (by_quantile.diff(dim=0) > 0).all()


def test_refinement_that_keeps_the_knots_keeps_the_function() -> None:
    low, high = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)
    coarse, fine = (uniform_knots(low, high, 12, inside, 3) for inside in (4, 12))
    coefficients = torch.randn(3, 15, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = low + (high - low) * torch.rand(100, 2, dtype=torch.float64)
    before = torch.einsum("bnd,ond->bod", bspline_basis(x, coarse, 3), coefficients)
    after = torch.einsum("bnd,ond->bod", bspline_basis(x, fine, 3), refit(coefficients, coarse, fine, 3))
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)


def test_a_refit_on_other_knots_is_near_the_function() -> None:
    old = uniform_knots(torch.tensor([-1.0]), torch.tensor([1.0]), 10, 10, 3).double()
    coefficients = old[2:-2].sin().T[None].permute(0, 2, 1)  # (1, 13, 1): a smooth function
    x = torch.rand(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    new = knots_of_samples(x, old, 10, 3, 0.5)
    before, after = (
        torch.einsum("bnd,ond->bod", bspline_basis(x, knots, 3), c)
        for knots, c in ((old, coefficients), (new, refit(coefficients, old, new, 3)))
    )
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)


def test_the_layer_is_the_formula() -> None:
    layer = KANLayer(2, 3, grid_size=4).double()
    x = torch.rand(7, 2, dtype=torch.float64) * 2 - 1
    expected = torch.zeros(7, 3, dtype=torch.float64)
    for out in range(3):
        for inp in range(2):
            spline = BSpline(layer.knots[:, inp].numpy(), layer.spline_weight[out, :, inp].detach().numpy(), 3)
            silu = x[:, inp] / (1 + (-x[:, inp]).exp())
            expected[:, out] += layer.base_weight[out, inp].item() * silu + torch.from_numpy(spline(x[:, inp].numpy()))
    torch.testing.assert_close(layer(x).detach(), expected)


def test_any_leading_axes() -> None:
    layer, x = KANLayer(3, 4), torch.randn(2, 5, 3)
    assert layer(x).shape == (2, 5, 4)
    torch.testing.assert_close(layer(x)[1], layer(x[1]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grid_size": 0}, "grid_size=0, .* 1 <= start_grid_size <= grid_size"),
        ({"grid_size": 4, "start_grid_size": 5}, "start_grid_size=5"),
        ({"spline_order": -1}, "an order of at least 0"),
        ({"grid_range": (1.0, 1.0)}, r"grid_range=\[1.0, 1.0\] is empty"),
    ],
)
def test_settings_that_make_no_grid_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KANLayer(2, 2, **settings)
