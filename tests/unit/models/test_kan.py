from functools import partial

import pytest
import torch
from torch import Tensor

from scaledl.distributed.parallelize import ModelBuilder
from scaledl.models.kan import KAN

SMALL = {"in_dim": 6, "hidden_dims": [5], "out_dim": 3, "grid_size": 4}


def make(**changes: object) -> KAN:
    return ModelBuilder(partial(KAN, **{**SMALL, **changes}), seed=0)()


def values(batch: int = 16) -> Tensor:
    return 2 * torch.rand(batch, 2, 3, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        # An edge has grid_size + spline_order coefficients and one weight of silu.
        ({"in_dim": 2, "hidden_dims": [5], "out_dim": 1, "grid_size": 5}, 15 * 9),
        ({"in_dim": 784, "hidden_dims": [64], "out_dim": 10, "grid_size": 5}, 50_816 * 9),
        ({"in_dim": 2, "hidden_dims": [], "out_dim": 1, "grid_size": 3, "spline_order": 2}, 2 * 6),
    ],
)
def test_numbers_of_parameters(settings: dict, count: int) -> None:
    assert sum(p.numel() for p in ModelBuilder(partial(KAN, **settings)).on_meta().parameters()) == count


def test_shapes() -> None:
    model = make(hidden_dims=[5, 7])
    assert model.num_features == 7
    assert model.forward_features(values()).shape == (16, 7)
    assert model(values()).shape == (16, 3)
    assert make(hidden_dims=[]).forward_features(values()).shape == (16, 6)


def test_a_gradient_for_every_parameter() -> None:
    model = make()
    model(values()).logsumexp(1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


def test_spare_intervals_have_a_gradient_of_zero_until_the_grid_is_refined() -> None:
    model = make(grid_size=12, start_grid_size=4, hidden_dims=[])
    model(values()).sum().backward()
    gradient = model.layers[0].spline_weight.grad
    assert not gradient[:, :4].any()  # (12 - 4) // 2 intervals to the left of the range
    assert gradient[:, 4 : 4 + 7].any()


def test_state_dict_round_trip_and_equal_builds() -> None:
    model, other = make(), make()
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, two), name
    assert "layers.0.knots" in model.state_dict()  # they move, so a checkpoint must hold them
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(1.1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(values()), model(values()), atol=0, rtol=0)


def test_bf16_is_near_fp32() -> None:
    model = make()
    expected = model(values())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(values())
    found = model.bfloat16()(values().bfloat16())
    assert found.dtype == mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.05)


def test_recomputed_layers_give_the_same_gradients() -> None:
    plain = make()
    recomputed = ModelBuilder(partial(KAN, **SMALL), seed=0, activation_checkpointing="full")()
    for model in (plain, recomputed):
        model(values()).logsumexp(1).sum().backward()
    for one, two in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_widths_below_one_and_other_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden_dims=\[0\].* every width must be at least 1"):
        make(hidden_dims=[0])
    with pytest.raises(ValueError, match="a sample has 4 values, but the model was built with in_dim=6"):
        make()(torch.zeros(2, 4))
