"""Which parameters decay, and that no group holds what an optimiser cannot take together."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from scaledl.optim.groups import parameter_groups


def holding(**parameters: torch.Tensor) -> nn.Module:
    model = nn.Module()
    for name, value in parameters.items():
        model.register_parameter(name, nn.Parameter(value))
    return model


def names_in(model: nn.Module) -> list[tuple[set[str], bool]]:
    """The names in each group, and whether they decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [({names[p] for p in g["params"]}, g.get("weight_decay") != 0.0) for g in parameter_groups(model)]


def test_matrices_and_kernels_decay_and_come_first() -> None:
    model = holding(
        gain=torch.ones(3), kernel=torch.ones(2, 3, 1, 1), scalar=torch.tensor(1.0), matrix=torch.ones(2, 1)
    )
    assert names_in(model) == [({"kernel", "matrix"}, True), ({"gain", "scalar"}, False)]


def test_what_is_not_trained_is_in_no_group() -> None:
    model = holding(matrix=torch.ones(2, 2), gain=torch.ones(2))
    model.gain.requires_grad_(False)
    assert names_in(model) == [({"matrix"}, True)]


def test_a_parameter_that_zero_took_apart_goes_by_its_whole_shape() -> None:
    model = holding(matrix=torch.empty(0), gain=torch.empty(0))
    model.matrix.ds_shape, model.gain.ds_shape = torch.Size([4, 4]), torch.Size([4])
    assert names_in(model) == [({"matrix"}, True), ({"gain"}, False)]


@pytest.mark.usefixtures("process_group")
def test_parameters_that_are_sharded_in_different_ways_are_kept_apart() -> None:
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("shard", "tensor"))

    def placed(*placements: Placement, shape: tuple[int, ...] = (4, 4)) -> DTensor:
        return distribute_tensor(torch.ones(shape), mesh, placements)

    model = holding(
        rows=placed(Shard(0), Replicate()),
        more_rows=placed(Shard(0), Replicate()),
        columns=placed(Shard(0), Shard(1)),
        of_one_axis=distribute_tensor(torch.ones(4, 4), mesh["shard"], [Shard(0)]),
        of_the_other=distribute_tensor(torch.ones(4, 4), mesh["tensor"], [Shard(0)]),
        plain=torch.ones(4, 4),
        gain=placed(Shard(0), Replicate(), shape=(4,)),
        plain_gain=torch.ones(4),
    )
    found = names_in(model)
    assert sorted(map(sorted, (names for names, decays in found if decays))) == [
        ["columns"],
        ["more_rows", "rows"],
        ["of_one_axis"],
        ["of_the_other"],
        ["plain"],
    ]
    assert sorted(map(sorted, (names for names, decays in found if not decays))) == [["gain"], ["plain_gain"]]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameter_groups(model), lr=0.1, fused=True).step()  # which a mixed group would fail
