"""Batch normalisation over one rank's samples, or over those of all ranks."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase


class BatchNorm(_BatchNorm):
    """Each channel of x (B, C, ...) at mean 0 and variance 1 over a micro-batch (Ioffe & Szegedy 2015).

    Results depend on how samples are spread over ranks, and ranks differ in their running statistics: `SyncBatchNorm`
    cures both. Differs from torch's own in what mixed precision asks for: gains of another dtype than the running
    statistics (FSDP casts parameters, not buffers), and activation checkpointing, whose second forward pass does not
    move the running statistics again.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__(num_features, eps, momentum, affine)

    def forward(self, x: Tensor) -> Tensor:
        return _batch_norm(self, x)


class SyncBatchNorm(_NormBase):
    """Batch normalisation with the statistics of all ranks' micro-batches, with gradients through them.

    W ranks compute what one would with their samples together; one rank alone, or no process group, runs `BatchNorm`.
    All ranks must train the same layers in the same order. As gradients are then averaged over ranks (DDP, FSDP), they
    too are those of one process. Unlike `torch.nn.SyncBatchNorm` it runs on the host.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__(num_features, eps, momentum, affine)

    def forward(self, x: Tensor) -> Tensor:
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
        return _batch_norm(self, x) if alone or not self.training else self._over_ranks(x)

    def _over_ranks(self, x: Tensor) -> Tensor:
        y, mean, var, count = _Normalize.apply(x, self.eps)
        if not recomputing():
            running_mean, running_var, momentum = _running(self)
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
        if self.affine:
            weight, bias = (p.to(x.dtype).view(-1, *[1] * (x.ndim - 2)) for p in (self.weight, self.bias))
            y = torch.addcmul(bias, y, weight)
        return y


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps), mean and variance over the samples and places of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide, axes = _wide(x), _axes(x)
        var, mean = torch.var_mean(wide, axes, correction=0)  # (C,)
        own = torch.stack([mean, var, torch.full_like(mean, x.numel() / x.shape[1])])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        means, variances, counts = torch.stack(every, 1)  # (W, C)
        count = counts.sum(0)
        # The variance of parts (Chan et al. 1983); a mean of squares less a squared mean would lose digits.
        mean = (counts * means).sum(0) / count
        var = (counts * (variances + (means - mean).square())).sum(0) / count
        inverse = (var + eps).rsqrt()
        y = ((wide - _spread(mean, x)) * _spread(inverse, x)).to(x.dtype)
        ctx.save_for_backward(y, inverse, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor, None]:
        y, inverse, count = ctx.saved_tensors
        wide, axes = _wide(grad), _axes(grad)
        sums = torch.stack([wide.sum(axes), (wide * y).sum(axes)])  # (2, C)
        dist.all_reduce(sums)
        mean, slope = (_spread(s, y) for s in sums / count)
        return ((wide - mean - y * slope) * _spread(inverse, y)).to(grad.dtype), None


def _batch_norm(norm: _NormBase, x: Tensor) -> Tensor:
    mean, var, momentum = _running(norm)
    if norm.training and recomputing():
        mean, var = mean.clone(), var.clone()
    weight, bias = (norm.weight.to(mean.dtype), norm.bias.to(mean.dtype)) if norm.affine else (None, None)
    return F.batch_norm(x, mean, var, weight, bias, norm.training, momentum, norm.eps)


def _running(norm: _NormBase) -> tuple[Tensor, Tensor, float]:
    """The running statistics and their momentum, which our constructors always give."""
    return norm.running_mean, norm.running_var, norm.momentum  # type: ignore[return-value]


def recomputing() -> bool:
    """Whether this is a forward pass inside a backward pass: activation checkpointing's second one."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


def _spread(values: Tensor, x: Tensor) -> Tensor:
    """(C,) against x (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))
