"""Most of an image is hidden, and painted again from the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task


class MaskedAutoencoding(Task):
    """Mean squared error of the pixels of hidden patches (He et al. 2022, Masked Autoencoders, section 3).

    Reads images `x` (B, C, H, W). The model gives all patches from some (models/mae.py).

    Args:
        mask_ratio: share of the patches that is hidden; at least one is, and one is not.
        norm_pix_loss: aim at pixels less their patch's mean, over its standard deviation.

    Raises:
        ValueError: if mask_ratio is not in (0, 1).
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
    ):
        super().__init__(model, optimizer, scheduler)
        if not 0 < mask_ratio < 1:
            raise ValueError(f"mask_ratio={mask_ratio} must lie in (0, 1); He et al. hide 0.75")
        self.mask_ratio, self.norm_pix_loss = mask_ratio, norm_pix_loss

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        order, num_kept = self.hide(self.noise)
        painted = self.model(batch["x"], order, num_kept).float()  # (B, N, P)
        target = self.model.patches(batch["x"]).float()  # type: ignore[operator]
        if self.norm_pix_loss:
            mean, std = moments(target)
            target = (target - mean) / std
        hidden = order[:, num_kept:, None]
        error = (painted - target).square().mean(2, keepdim=True)  # (B, N, 1)
        return {"loss": error.take_along_dim(hidden, dim=1).mean()}

    def hide(self, noise: Noise) -> tuple[Tensor, int]:
        """A random order (B, N) of each sample's patches, and how many of the first are shown."""
        num_patches: int = self.model.num_patches  # type: ignore[assignment]
        num_kept = int(num_patches * (1 - self.mask_ratio))
        return noise.permutation("mask", num_patches), min(max(num_kept, 1), num_patches - 1)

    @torch.no_grad()
    def paint(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images x (B, C, H, W) with their hidden patches at NaN, and with these painted by the model."""
        order, num_kept = self.hide(noise)
        painted = self.model(x, order, num_kept).float()
        patches = self.model.patches(x).float()  # type: ignore[operator]
        if self.norm_pix_loss:  # the model does not know a patch's mean and deviation: they are the original's
            mean, std = moments(patches)
            painted = painted * std + mean
        shown = (order.argsort(1) < num_kept)[..., None]  # (B, N, 1)
        images: Callable[[Tensor], Tensor] = self.model.images  # type: ignore[assignment]
        return images(patches.masked_fill(~shown, torch.nan)), images(torch.where(shown, patches, painted))


def moments(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, N, 1) of each of patches (B, N, P)."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()
