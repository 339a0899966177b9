"""Experts divided over ranks that see the same tokens."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle


class ExpertParallel(ParallelStyle):
    """Each rank of a tensor-parallel group holds whole experts (see `Experts`) and adds what they give its tokens.

    The ranks of the group have the same activations, so nothing is sent to where an expert lies (Lepikhin et al. 2020
    send tokens): the outputs are summed over the group, and so are the gradients of what the experts read.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._divide, _enter, _leave)  # type: ignore[arg-type]

    def _divide(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            divided = distribute_tensor(parameter, mesh, [Shard(0)], src_data_rank=self.src_data_rank)
            module.register_parameter(key, nn.Parameter(divided, requires_grad=parameter.requires_grad))
        module.first_expert = mesh.get_local_rank() * (module.num_experts // mesh.size())  # type: ignore


def _enter(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
    """The same forward; backward, each rank's gradient is of its own experts alone."""
    x, weights, chosen = inputs
    return *(_whole(tensor, mesh).to_local(grad_placements=[Partial()]) for tensor in (x, weights)), chosen


def _leave(module: nn.Module, outputs: Tensor, mesh: DeviceMesh) -> Tensor:
    return DTensor.from_local(outputs, mesh, [Partial()], run_check=False).redistribute(mesh, [Replicate()]).to_local()


def _whole(tensor: Tensor, mesh: DeviceMesh) -> DTensor:
    return DTensor.from_local(tensor, mesh, [Replicate()], run_check=False)
