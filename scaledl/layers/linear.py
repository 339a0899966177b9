"""Linear layers whose large fp32 products oneDNN computes where PyTorch would take MKL's slower ones."""

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scaledl.layers.precision import product_dtype

# Below so many multiplications the call of a Python function costs what its product gains (AMD Zen 4, 2 cores).
MIN_PRODUCTS = 2**25
# What `product` calls, for who looks at operations; builds of PyTorch without oneDNN, as for macOS, lack it.
PRODUCTS = {torch.ops.mkldnn._linear_pointwise.default} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else set()


class Linear(nn.Linear):
    """torch's layer; only the products are computed by another library, where that is faster (see `product`)."""

    def forward(self, x: Tensor) -> Tensor:
        if is_faster(x, self.weight):
            return _Linear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias by oneDNN, without gradients. Shapes: x (..., in), weight (out, in), bias (out,).

    In fp32, as MKL's, and 1.05 to 1.47 times as fast on AMD's Zen 4 (scripts/bench_linear.py).
    """
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` is to be taken: fp32 on an AMD processor, large, and plain tensors that nothing traces."""
    return (
        x.is_cpu
        and x.numel() * weight.shape[0] >= MIN_PRODUCTS
        and x.dtype == weight.dtype == product_dtype(x) == torch.float32
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and processor_is_amd()
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        of_x = of_weight = of_bias = None
        if wanted_x:  # grad mode is on where a gradient of the gradient will be taken
            of_x = gradient @ weight if torch.is_grad_enabled() else product(gradient, weight.mT)
        if wanted_weight:
            of_weight = rows.mT @ x.flatten(0, -2)  # here MKL is the faster one
        if wanted_bias:
            of_bias = rows.sum(0)
        return of_x, of_weight, of_bias


@functools.cache
def processor_is_amd() -> bool:
    """Whether PyTorch's fp32 products are MKL's, on a processor of AMD."""
    described = Path("/proc/cpuinfo")
    return (
        sys.platform == "linux"
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkl.is_available()
        and "AuthenticAMD" in described.read_text()
    )
