"""Rows that are sorted into groups, each group times a matrix of its own."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """x (N, in), weight (E, out, in), ends (E,) int32 -> (N, out): rows ends[e - 1] to ends[e] times weight[e]ᵀ.

    Rows from ends[-1] on are in no group; what comes out for them, and as their gradient, is undefined. In bf16 on a
    GPU this is one kernel, and `ends` stays on the device; elsewhere, and where `in` or `out` is no multiple of 8, one
    product after the other, whose sizes the host must know. Under autocast it computes in its precision, as F.linear
    does.
    """
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    aligned = weight.shape[1] % 8 == 0 and weight.shape[2] % 8 == 0  # to 16 bytes, x's rows and its gradient's
    if x.is_cuda and x.dtype == torch.bfloat16 and aligned:
        return F.grouped_mm(x, weight.mT, offs=ends)
    return _linear(x, weight, ends)


# Operators of our own, so that the compiler need not know how many rows a group has.
@torch.library.custom_op("scaledl::grouped_linear", mutates_args=())
def _linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y = x.new_empty(len(x), weight.shape[1])
    for (begin, end), matrix in zip(_ranges(ends), weight, strict=True):
        torch.mm(x[begin:end], matrix.mT, out=y[begin:end])
    return y


@torch.library.custom_op("scaledl::grouped_outer", mutates_args=())
def _outer(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """(N, out), (N, in) -> (E, out, in): the sum of y xᵀ over the rows of each group."""
    weight = x.new_empty(len(ends), y.shape[1], x.shape[1])
    for (begin, end), matrix in zip(_ranges(ends), weight, strict=True):
        torch.mm(y[begin:end].mT, x[begin:end], out=matrix)
    return weight


def _ranges(ends: Tensor) -> list[tuple[int, int]]:
    found = ends.tolist()
    return list(zip([0, *found], found, strict=False))


@_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(x), weight.shape[1])


@_outer.register_fake
def _(y: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(len(ends), y.shape[1], x.shape[1])


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[no-untyped-def]
    x, weight, ends = ctx.saved_tensors
    return (
        _linear(grad, weight.mT, ends) if ctx.needs_input_grad[0] else None,
        _outer(grad, x, ends) if ctx.needs_input_grad[1] else None,
        None,
    )


_linear.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


PRODUCTS = (torch.ops.aten._grouped_mm.default, torch.ops.scaledl.grouped_linear.default)  # what grouped_linear runs


@register_flop_formula([torch.ops.scaledl.grouped_linear])
def _linear_flops(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
    return 2 * x[0] * x[1] * weight[1]


@register_flop_formula([torch.ops.scaledl.grouped_outer])
def _outer_flops(y: torch.Size, x: torch.Size, *_: object, **__: object) -> int:
    return 2 * y[0] * y[1] * x[1]
