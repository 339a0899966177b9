"""Drawing the input again from a code: what the code keeps is what matters."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from scaledl.distributed.noise import Noise
from scaledl.distributed.parallelize import ModelBuilder
from scaledl.tasks.base import Task, check_range

Likelihood = Literal["bernoulli", "gaussian"]


class Autoencoding(Task):
    """Images `x` (B, C, H, W) from their codes; denoising where they are spoilt first (Vincent et al. 2008).

    Metrics: `loss`, in nats a sample, and `mse`, of a pixel, both against the unspoilt image. Evaluations spoil, too.

    Args:
        likelihood: "bernoulli" takes pixels in [0, 1] as probabilities, "gaussian" (of std 1) any.
        noise_std: of normal noise that is added to the input.
        mask_ratio: share of the input's pixels that become 0.

    Raises:
        ValueError: settings are out of range, or at the start of the training, the pixels are for this likelihood.
    """

    def __init__(
        self,
        model: ModelBuilder,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        likelihood: Likelihood = "bernoulli",
        noise_std: float = 0.0,
        mask_ratio: float = 0.0,
    ):
        super().__init__(model, optimizer, scheduler)
        if noise_std < 0 or not 0 <= mask_ratio < 1:
            raise ValueError(
                f"noise_std={noise_std} must be at least 0, mask_ratio={mask_ratio} lie in [0, 1); 0 leaves it out"
            )
        self.likelihood, self.noise_std, self.mask_ratio = likelihood, noise_std, mask_ratio

    def on_fit_start(self) -> None:
        if self.likelihood == "bernoulli":
            check_range(self, (0, 1), "task.likelihood=bernoulli takes", "task.likelihood=gaussian")

    def objective(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = batch["x"]
        out = self.model(self.spoilt(x, self.noise)).float()
        loss = -log_likelihood(x, out, self.likelihood).mean()
        return {"loss": loss, "mse": (mean_of(out, self.likelihood) - x).square().mean()}

    def spoilt(self, x: Tensor, noise: Noise) -> Tensor:
        """What the model is shown of images x."""
        if self.noise_std:
            x = x + self.noise_std * noise.normal("spoil", *x.shape[1:], dtype=x.dtype)
        if self.mask_ratio:
            x = x.masked_fill(noise.bernoulli("mask", self.mask_ratio, 1, *x.shape[2:]), 0)
        return x

    # What callbacks/reconstructions.py and latent_space.py ask of a task.

    def reconstruct(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """What the model is shown of images x, and what it draws."""
        shown = self.spoilt(x, noise)
        return shown, mean_of(self.model(shown).float(), self.likelihood)

    def codes(self, x: Tensor) -> Tensor:
        """(B, latent_dim)."""
        return self.model.encode(x).float()  # type: ignore[operator]

    def decoded(self, z: Tensor) -> Tensor:
        return mean_of(self.model.decode(z).float(), self.likelihood)  # type: ignore[operator]


def log_likelihood(x: Tensor, out: Tensor, likelihood: Likelihood) -> Tensor:
    """log p(x | out) of each sample (B,) in nats: out are logits, or means of normals of std 1."""
    if x.shape != out.shape:
        raise ValueError(
            f"images of shape {tuple(x.shape[1:])}, but the model draws {tuple(out.shape[1:])}: make in_channels and "
            "image_size those of the data"
        )
    if likelihood == "bernoulli":
        each = -F.binary_cross_entropy_with_logits(out, x, reduction="none")
    else:
        each = -((x - out).square() + np.log(2 * np.pi)) / 2
    return each.flatten(1).sum(1)


def mean_of(out: Tensor, likelihood: Likelihood) -> Tensor:
    return out.sigmoid() if likelihood == "bernoulli" else out
