"""The norm of gradients, clipping by it, and bad steps that leave no trace: on plain tensors and on shards."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from scaledl.distributed import gradients

SHAPES = [(5, 3), (7,), (), (2, 3, 4)]


def drawn(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def norm_of(tensors: list[Tensor]) -> float:
    return torch.cat([tensor.double().flatten() for tensor in tensors]).norm().item()


def sharded(tensors: list[Tensor]) -> list[Tensor]:
    """Some in each of the layouts that are met together: of both axes, of one, whole, and no DTensor at all."""
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("shard", "tensor"))
    layouts = [(mesh, [Shard(0), Shard(1)]), (mesh["shard"], [Shard(0)]), (mesh, [Replicate(), Replicate()])]
    placed = [distribute_tensor(t, m, p) for t, (m, p) in zip(tensors, layouts, strict=False)]
    return [*placed, *tensors[len(placed) :]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_that_of_all_gradients_as_one_vector(dtype: torch.dtype) -> None:
    norm = gradients.global_norm(drawn(dtype=dtype))
    assert (norm.dtype, norm.shape) == (torch.float32, ())
    assert norm.item() == pytest.approx(norm_of(drawn(dtype=dtype)), rel=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.usefixtures("process_group")
def test_the_norm_of_shards_is_that_of_the_whole() -> None:
    assert gradients.global_norm(sharded(drawn())).item() == pytest.approx(norm_of(drawn()), rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", range(len(SHAPES)))
def test_a_single_bad_element_makes_the_norm_bad(value: float, where: int) -> None:
    found = drawn()
    found[where].view(-1)[-1] = value
    assert not gradients.global_norm(found).isfinite()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("layout", [list, sharded])
def test_clipping_keeps_the_direction_and_bounds_the_length(layout: Callable) -> None:
    found = layout(drawn())
    gradients.clip(found, gradients.global_norm(found), 0.5)
    clipped = [gradients.local(gradient) for gradient in found]
    assert norm_of(clipped) == pytest.approx(0.5, rel=1e-5)
    for one, before in zip(clipped, drawn(), strict=True):
        torch.testing.assert_close(one, before * 0.5 / norm_of(drawn()), rtol=1e-5, atol=1e-7)


def test_gradients_below_the_bound_are_left_alone() -> None:
    found = drawn()
    gradients.clip(found, gradients.global_norm(found), 1.01 * norm_of(found))
    assert all(torch.equal(one, before) for one, before in zip(found, drawn(), strict=True))


OPTIMIZERS = {
    "adamw": partial(AdamW, fused=False),
    "adamw fused": partial(AdamW, fused=True),
    "adamw foreach": partial(AdamW, foreach=True),
    "adam amsgrad fused": partial(Adam, fused=True, amsgrad=True),
    "sgd": partial(SGD, fused=False),
    "sgd fused": partial(SGD, fused=True),
    "sgd momentum": partial(SGD, momentum=0.9, fused=False),
    "sgd momentum fused": partial(SGD, momentum=0.9, fused=True),
    "sgd nesterov fused": partial(SGD, momentum=0.9, nesterov=True, fused=True),
    "rmsprop": RMSprop,
}


def trained(make: Callable[..., Optimizer], values: list[float]) -> tuple[list[Tensor], Any]:
    """Parameters and the optimiser's state after a step for each of `values`, which one element of its gradient is."""
    parameters = [nn.Parameter(value) for value in drawn(seed=1)]
    optimizer = make(parameters, lr=0.1, weight_decay=0.1)
    good = 0
    for value in values:
        for parameter, gradient in zip(parameters, drawn(seed=good + 2), strict=True):
            parameter.grad = gradient
        parameters[0].grad[0, 0] = value
        good += bool(torch.tensor(value).isfinite())
        norm = gradients.global_norm([p.grad for p in parameters])
        gradients.clip([p.grad for p in parameters], norm, 1.0)
        gradients.skip_if(~norm.isfinite(), optimizer, parameters)
        optimizer.step()
    return parameters, copy.deepcopy(optimizer.state_dict()["state"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("steps", [[None, 1.0, 2.0], [1.0, None, 2.0], [1.0, 2.0, None], [None, None, 1.0]])
def test_a_bad_step_leaves_no_trace_in_weights_and_state(optimizer: str, bad: float, steps: list) -> None:
    with_bad = trained(OPTIMIZERS[optimizer], [bad if value is None else value for value in steps])
    without = trained(OPTIMIZERS[optimizer], [value for value in steps if value is not None])
    torch.testing.assert_close(with_bad, without, rtol=0, atol=0)
    start = [nn.Parameter(value) for value in drawn(seed=1)]
    assert all(not torch.equal(a, b) for a, b in zip(with_bad[0], start, strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_first_step_that_is_bad_changes_no_weight(optimizer: str) -> None:
    parameters, _ = trained(OPTIMIZERS[optimizer], [float("nan")])
    assert all(torch.equal(a, b) for a, b in zip(parameters, drawn(seed=1), strict=True))


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("optimizer", ["adamw", "adamw fused", "sgd momentum"])
def test_a_bad_step_of_shards_changes_nothing(optimizer: str) -> None:
    mesh = init_device_mesh("cpu", (1,))
    parameter = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]))
    made = OPTIMIZERS[optimizer]([parameter], lr=0.1)
    for value in (1.0, float("nan")):
        parameter.grad = distribute_tensor(torch.full((4, 2), value), mesh, [Shard(0)])
        gradients.skip_if(~gradients.global_norm([parameter.grad]).isfinite(), made, [parameter])
        before = parameter.to_local().detach().clone()
        made.step()
        assert torch.equal(parameter.to_local(), before) is (value != 1.0)
