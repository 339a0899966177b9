"""Feature visualisation: inputs that make something in the model large (Erhan et al. 2009; Olah et al. 2017)."""

import torch
from torch import Tensor

from scaledl.interpret.subject import Score


def activation_maximization(
    score: Score, low: Tensor, high: Tensor, count: int, steps: int = 256, smoothness: float = 0.5, seed: int = 0
) -> Tensor:
    """Images (count, C, H, W) between low and high (C, H, W), of which score (count,) is as large as Adam can make it.

    Kept smooth by a penalty on the mean difference of neighbouring pixels, as a share of the range, times the size of
    the score; and shifted by up to a sixteenth of their side at every step, so that no fixed grid is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    start = 0.1 * torch.randn(count, *low.shape, generator=generator)
    inside = start.to(low.device).requires_grad_()  # a sigmoid brings it into the range
    optimizer = torch.optim.Adam([inside], lr=0.1)
    jitter = low.shape[-1] // 16
    with torch.enable_grad():
        for _ in range(steps):
            share = inside.sigmoid()
            shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
            value = score((low + (high - low) * share).roll(shift, (2, 3)))  # (count,)
            rough = share.diff(dim=2).abs().mean((1, 2, 3)) + share.diff(dim=3).abs().mean((1, 2, 3))
            loss = (smoothness * rough * value.detach().abs() - value).sum()
            (inside.grad,) = torch.autograd.grad(loss, inside)
            optimizer.step()
    return (low + (high - low) * inside.sigmoid()).detach()
