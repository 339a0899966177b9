"""What all ranks computed, as if one had, with gradients."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from scaledl.distributed import group


def gather(x: Tensor, tensor_parallel_size: int = 1) -> tuple[Tensor, int]:
    """x of every rank that computes samples of its own, (data ranks, ...), and which of these this rank's x is.

    Backward hands each rank the sum of all ranks' gradients of its x. So where each rank's loss is the mean over its
    share of a global batch, the mean of the ranks' gradients, which every strategy takes, is that of one process. A
    gather that cuts the graph, or leaves only the own part in it, is off by a quarter or more.

    Args:
        tensor_parallel_size: ranks that follow one another and compute the same x; it counts once.
    """
    if group.world_size() == 1:
        return x[None], 0
    rank, together = group.rank(), tensor_parallel_size
    every: Tensor = _Gather.apply(x)
    return every[rank % together :: together], rank // together


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)  # gloo has no reduce-scatter of its own
        return gradient[dist.get_rank()]
