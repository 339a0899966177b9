"""Cross entropy of a linear layer's outputs, which are never in memory as a whole."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from scaledl.layers.linear import is_faster, product
from scaledl.layers.precision import product_dtype

IGNORED = -100  # the label of a token that counts nothing, as in torch's cross_entropy


def linear_cross_entropy(features: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int | None = None) -> Tensor:
    """Mean over the labels of -log softmax(features · weightᵀ)[label] in fp32; 0 where there is no label.

    Shapes: features (N, dim), weight (V, dim), labels (N,), of which -100 are left out. The logits of chunk_tokens
    tokens exist at a time. Their gradients are taken while they do (the idea of Liger's kernels, arXiv:2410.10989):
    nothing is computed twice, the backward pass only scales, and the weight may be gone by then, as when it is
    gathered for the forward pass alone. Products are in autocast's dtype where that is on.

    chunk_tokens: null takes as many as make 4 million logits, but 256 or more: each chunk reads and writes the whole
    gradient of the weight, which for fewer tokens would take longer than their products. If all logits are a million or
    fewer, torch's own loss is taken, which is faster then.

    Raises:
        ValueError: if chunk_tokens is below 1.
    """
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens}: a chunk has at least one token, or take null for the default")
    if chunk_tokens is None and len(features) * len(weight) <= 2**20:
        logits = F.linear(features, weight).float()  # (N, V)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)
    if chunk_tokens is None:
        chunk_tokens = max(256, 2**22 // len(weight))
    if torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(features, weight, labels, chunk_tokens)
    with torch.no_grad():
        return _summed(features, weight, labels, chunk_tokens, (False, False))[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int) -> Tensor:
        loss, counted, *gradients = _summed(features, weight, labels, chunk_tokens, ctx.needs_input_grad[:2])
        ctx.counted, ctx.gradients, ctx.dtype = counted, gradients, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (for_features, for_weight), ctx.gradients = ctx.gradients, None  # scaled in place, so it can be done once
        scale = gradient / ctx.counted.sum().clamp(min=1)
        if for_features is not None:
            for_features.mul_((ctx.counted * scale)[:, None])
        if for_weight is not None:
            for_weight = for_weight.mul_(scale).to(ctx.dtype)
        return for_features, for_weight, None, None


def _summed(
    features: Tensor, weight: Tensor, labels: Tensor, chunk_tokens: int, wanted: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The mean loss, which labels count, and the gradients of each token's loss and of the losses' sum, if wanted.

    The gradient of the weight is summed in fp32: in bf16, a chunk that adds less than 1/256 of what is there is lost.
    """
    dtype = product_dtype(features)
    counted = labels != IGNORED  # (N,)
    labels = labels.masked_fill(~counted, 0)[:, None]
    weight = weight.to(dtype)
    losses = features.new_empty(len(features), dtype=torch.float32)
    features_gradient = torch.empty_like(features) if wanted[0] else None
    weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wanted[1] else None
    by_onednn = is_faster(features[:chunk_tokens], weight)
    if not by_onednn:
        buffer = features.new_empty(min(chunk_tokens, len(features)), len(weight), dtype=dtype)
        exact = buffer if dtype == torch.float32 else torch.empty_like(buffer, dtype=torch.float32)
    for start in range(0, len(features), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        x = features[part].to(dtype)  # (C, dim)
        if by_onednn:
            logits = p = product(x, weight)  # (C, V)
        else:
            logits, p = buffer[: len(x)], exact[: len(x)]  # (C, V)
            torch.mm(x, weight.mT, out=logits)
            if p is not logits:
                p.copy_(logits)
        largest, chosen = p.amax(-1), p.gather(1, labels[part]).squeeze(1)
        torch.softmax(p, -1, out=p)
        # log Σ exp(logit), from the largest probability, which unlike that of the label is never 0
        torch.sub(largest - p.amax(-1).log(), chosen, out=losses[part])
        if not any(wanted):
            continue
        p.scatter_add_(1, labels[part], p.new_full((len(x), 1), -1.0))
        if p is not logits:
            logits.copy_(p)
        if features_gradient is not None:
            features_gradient[part] = product(logits, weight.mT) if by_onednn else torch.mm(logits, weight)
        if weight_gradient is not None:
            x = x * counted[part, None]
            if p is logits:
                weight_gradient.addmm_(logits.mT, x)
            else:
                weight_gradient += torch.mm(logits.mT, x)
    mean = losses.mul_(counted).sum() / counted.sum().clamp(min=1)
    return mean, counted, features_gradient, weight_gradient
